// Arithmetic of kernel.cpp in float32.
#pragma once

#include "copied.h"

namespace lpvit {
namespace {

using Weight = float;
using Input = float;  // in a panel

constexpr int kStep = 1;         // inputs of a token that are multiplied at once
constexpr int kInterleaved = 1;  // columns whose weights alternate in memory
constexpr int64_t kDepth = 1536;  // inputs worked on at once, roughly

template <int lanes>
Vector<lanes> load_weights(const float* column, int64_t) {
  return load<lanes>(column);
}

template <int lanes>
Vector<lanes> multiply_add(const float* x, Vector<lanes> weights, Vector<lanes> sum) {
  return sum + *x * weights;
}

template <int floats>
Constants<floats> constants_of(const Problem& p, int64_t first, int64_t count) {
  return {static_cast<const float*>(p.bias), first, count};
}

void fill_panel(const Problem& p, int64_t first_token, int64_t tokens, int64_t first, int64_t last, int64_t padded,
                float* panel, Token*) {
  copy_to_panel<16>(p, first_token, tokens, first, last, padded, panel);
}

// Calls a function with the outputs in their type.
template <typename Function>
void with_outputs(const Problem& p, Function&& function) {
  function(static_cast<float*>(p.outputs));
}

}  // namespace
}  // namespace lpvit
