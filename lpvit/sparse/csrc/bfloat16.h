// Arithmetic of kernel.cpp in bfloat16 with sums in float32, by the instruction of AVX512-BF16 for two columns at once.
#pragma once

#include <limits>

#include "copied.h"

namespace lpvit {
namespace {

using Weight = BFloat16;
using Input = BFloat16;  // in a panel

constexpr int kStep = 2;         // inputs of a token that are multiplied at once
constexpr int kInterleaved = 1;  // columns whose weights alternate in memory
constexpr int64_t kDepth = std::numeric_limits<int32_t>::max();  // sums in float32 cannot wait in the outputs

// Weights of a column and of the next one, in turn.
template <int lanes>
Vector<lanes> load_weights(const BFloat16* column, int64_t block_rows) {
  return reinterpret_cast<Vector<lanes>>(widened<lanes>(column) | widened<lanes>(column + block_rows) << 16);
}

template <int lanes>
Vector<lanes> multiply_add(const BFloat16* x, Vector<lanes> weights, Vector<lanes> sum) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  if constexpr (lanes == 16) {
    const auto inputs = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
    const auto columns = reinterpret_cast<__m512bh>(weights);
    return reinterpret_cast<Vector<16>>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), inputs, columns));
  } else if constexpr (lanes == 8) {
    const auto inputs = reinterpret_cast<__m256bh>(_mm256_set1_epi32(pair));
    const auto columns = reinterpret_cast<__m256bh>(weights);
    return reinterpret_cast<Vector<8>>(_mm256_dpbf16_ps(reinterpret_cast<__m256>(sum), inputs, columns));
  } else {
    const auto [low, high] = std::bit_cast<std::array<BFloat16, 2>>(weights[0]);
    return sum + to_float(x[0]) * to_float(low) + to_float(x[1]) * to_float(high);
  }
}

template <int floats>
Constants<floats> constants_of(const Problem& p, int64_t first, int64_t count) {
  return {static_cast<const BFloat16*>(p.bias), first, count};
}

void fill_panel(const Problem& p, int64_t first_token, int64_t tokens, int64_t first, int64_t last, int64_t padded,
                BFloat16* panel, Token*) {
  copy_to_panel<32>(p, first_token, tokens, first, last, padded, panel);
}

// Calls a function with the outputs in their type.
template <typename Function>
void with_outputs(const Problem& p, Function&& function) {
  function(static_cast<BFloat16*>(p.outputs));
}

}  // namespace
}  // namespace lpvit
