// Panels of inputs as they are, sums in floats: what float32 and bfloat16 have in common.
#pragma once

#include <numeric>

#include "norm.h"

namespace lpvit {
namespace {

template <int lanes>
using Sum = Vector<lanes>;

struct Token {};  // nothing is to be known of one beside its inputs

// Where the sums of some outputs begin, and what they become.
template <int floats>
struct Constants {
  template <typename Number>
  Constants(const Number* of_all, int64_t first, int64_t count) {
    if (of_all) std::transform(of_all + first, of_all + first + count, bias, [](Number n) { return to_float(n); });
  }
  template <int lanes>
  auto start_of(int output) const {
    return [start = load<lanes>(bias + output)](const Token&) { return start; };
  }
  template <int lanes>
  auto finish_of(int) const {
    return [](const Token&, Sum<lanes> sum) { return sum; };
  }

  float bias[floats] = {};
};

// Copies the first inputs of some rows into a panel, with zeros up to `padded` inputs.
template <int group, typename Number>
void copy_to_panel(const Number* inputs, int64_t distance, int64_t rows, int64_t count, int64_t padded, Number* panel) {
  const int64_t whole = count / group * group;
  for (int64_t r = 0; r < rows; ++r, inputs += distance) {
    Number* to = panel + r * group;
    for (int64_t i = 0; i < whole; i += group, to += rows * group) std::copy_n(inputs + i, group, to);
    for (int64_t i = whole; i < padded; i += group, to += rows * group) {
      const int64_t rest = std::clamp<int64_t>(count - i, 0, group);
      std::copy_n(inputs + i, rest, to);
      std::fill(to + rest, to + group, Number{0});
    }
  }
}

// Puts the inputs [first, last) of some tokens into a panel, normalised if that is asked for.
template <int group, typename Number>
void copy_to_panel(const Problem& p, int64_t first_token, int64_t tokens, int64_t first, int64_t last, int64_t padded,
                   Number* panel) {
  const Number* inputs = static_cast<const Number*>(p.inputs) + first_token * p.in_features;
  if (!p.norm_weight) {
    return copy_to_panel<group>(inputs + first, p.in_features, tokens, std::min(last, p.in_features) - first, padded,
                                panel);
  }
  constexpr int lanes = Row<Number>::kWidth;
  auto normalised = room_for_norm<Number>(p);
  for (int64_t t = 0; t < tokens; ++t, inputs += p.in_features) {
    normalise(p, Row<Number>(inputs, p.in_features), normalised.data());
    const Row<float> row(normalised.data(), p.in_features);
    for (int64_t i = 0; i < padded; i += lanes) {
      store<lanes>(panel + (i / group * tokens + t) * group + i % group, row.at(first + i));
    }
  }
}

}  // namespace
}  // namespace lpvit
