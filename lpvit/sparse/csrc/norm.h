// LayerNorm of inputs on their way into a panel.
#pragma once

#include <cmath>
#include <vector>

#include "kernel.h"
#include "vectors.h"

namespace lpvit {
namespace {

// Room for the normalised inputs of a token, if they are normalised.
template <typename Number>
std::vector<float> room_for_norm(const Problem& p) {
  return std::vector<float>(p.norm_weight ? p.in_features + Row<Number>::kWidth : 0);
}

// The inputs of a token through LayerNorm, with zeros behind the last.
template <typename Number>
void normalise(const Problem& p, const Row<Number>& row, float* to) {
  constexpr int lanes = Row<Number>::kWidth;
  const Row<float> weight(p.norm_weight, row.count), bias(p.norm_bias, row.count);
  Vector<lanes> sum = {}, squares = {};
  for (int64_t i = 0; i < row.count; i += lanes) {
    const Vector<lanes> x = row.at(i);
    sum += x;
    store<lanes>(to + i, x);
  }
  const float mean = reduced<lanes>(sum, kSum) / row.count;
  int64_t i = 0;
  for (; i + lanes <= row.count; i += lanes) {
    const Vector<lanes> deviation = load<lanes>(to + i) - mean;
    squares += deviation * deviation;
  }
  float square = reduced<lanes>(squares, kSum);
  for (; i < row.count; ++i) square += (to[i] - mean) * (to[i] - mean);
  const float reciprocal = 1 / std::sqrt(square / row.count + p.norm_epsilon);
  for (int64_t i = 0; i < row.count; i += lanes) {
    store<lanes>(to + i, (load<lanes>(to + i) - mean) * reciprocal * weight.at(i) + bias.at(i));
  }
}

}  // namespace
}  // namespace lpvit
