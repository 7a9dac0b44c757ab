// Attention in integers: what attention.cpp does in int8. Queries are quantised as the inputs of a layer are, token by
// token, and keys and values as its weights, with a scale for each key and for each feature of the values; weights of the
// softmax are 0 ... 255 of the largest one. Sums are exact in int32, softmax and what comes after it in float32.
//
// Keys lose their mean over the tokens first, which adds the same to all scores of a query: softmax does not see it, but
// rounding would (Zhang et al., SageAttention, ICLR 2025).
#pragma once

#include "heads.h"

namespace lpvit {
namespace {

constexpr float kLogOfGreatestWeight = 7.99435344f;  // to base 2: of 255
constexpr float kGreatestSigned = 127;

// Calls a function with a number of the kind that lies in memory.
template <typename Function>
void with_number(const Attention& p, Function&& function) {
  p.bfloat16 ? function(BFloat16{}) : function(float{});
}

// Factor that maps numbers of at most a given size to integers, and the value of 1 then: NaN if `zeros`, their sum times
// 0, is NaN.
template <typename Numbers>
struct Scale {
  Scale(Numbers size, Numbers zeros)
      : reciprocal(size > kSmallestRange ? kGreatestSigned / size : Numbers{}), scale(size / kGreatestSigned + zeros) {}
  Numbers reciprocal, scale;
};

// The sums of the integers of every column of a strip's vector.
IntVector<kLanes> add_words(IntVector<kLanes> sums, Vector<kLanes> words) {
  constexpr Input ones[kStep] = {1, 1, 1, 1};
  return multiply_add<kLanes>(ones, reinterpret_cast<IntVector<kLanes>>(words), sums);
}

template <typename Number>
void take_means(const Attention& p, const Number* keys, float* means) {
  for (int64_t f = 0; f < p.features; f += kLanes) {
    Vector<kLanes> sum = {};
    for (int64_t t = 0; t < p.tokens; ++t) sum += Row<Number>(keys + t * p.keys.token, p.features).at(f);
    store<kLanes>(means + f, sum / static_cast<float>(p.tokens));
  }
}

// Quantises a key less the means; its scale.
template <typename Number>
float quantise_key(const Row<Number>& key, const float* means, Input* bytes) {
  Range<kLanes> range;
  for (int64_t f = 0; f < key.count; f += kLanes) range.take(key.at(f) - load<kLanes>(means + f));
  const float size = reduced<kLanes>(kGreater(range.greatest, -range.least), kGreater);
  const Scale<float> scale(size, reduced<kLanes>(range.zeros, kSum));
  for (int64_t f = 0; f < key.count; f += kLanes) {
    const auto whole = rounded<kLanes>((key.at(f) - load<kLanes>(means + f)) * scale.reciprocal);
    store<kLanes>(bytes + f, whole);
  }
  return scale.scale;
}

template <typename Number>
void pack_keys(const Attention& p, const Number* keys, const Scratch& scratch) {
  take_means(p, keys, scratch.key_means);
  const int64_t distance = rounded_up(p.features, kLine<Input>);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const Row<Number> key(keys + t * p.keys.token, p.features);
    scratch.key_scales[t] = quantise_key(key, scratch.key_means, scratch.key_bytes + t * distance);
  }
  std::fill(scratch.key_scales + p.tokens, scratch.key_scales + rounded_up(p.tokens, kLanes), 0.0f);
  transpose_to_strips(scratch.key_bytes, distance, p.tokens, p.features, scratch.keys);
  const float* words = scratch.keys;
  for_each_strip(p.tokens, [&](int64_t first, int64_t width) {
    for (int64_t j = 0; j < width; j += kLanes) {
      IntVector<kLanes> sums = {};
      for (int64_t i = 0; i < steps_of(p.features); ++i) sums = add_words(sums, load<kLanes>(words + i * width + j));
      const Vector<kLanes> scales = load<kLanes>(scratch.key_scales + first + j);
      store<kLanes>(scratch.key_sums + first + j, __builtin_convertvector(sums, Vector<kLanes>) * scales);
    }
    words += steps_of(p.features) * width;
  });
}

// Packs a vector of features; steps of a strip are so many words apart.
template <typename Number>
void pack_features(const Attention& p, const Number* values, int64_t feature, const Scratch& scratch, float* words,
                   int64_t distance) {
  const auto of_token = [&](int64_t t) { return Row<Number>(values + t * p.values.token, p.features).at(feature); };
  Range<kLanes> range;
  for (int64_t t = 0; t < p.tokens; ++t) range.take(of_token(t));
  const Scale<Vector<kLanes>> scale(kGreater(range.greatest, -range.least), range.zeros);
  IntVector<kLanes> sums = {};
  for (int64_t t = 0; t < p.tokens; t += kStep, words += distance) {
    IntVector<kLanes> bytes = {};
    for (int64_t s = 0; s < kStep && t + s < p.tokens; ++s) {
      bytes |= (rounded<kLanes>(of_token(t + s) * scale.reciprocal) & 255) << (8 * s);
    }
    const auto packed = reinterpret_cast<Vector<kLanes>>(bytes);
    sums = add_words(sums, packed);
    store<kLanes>(words, packed);
  }
  store<kLanes>(scratch.value_scales + feature, scale.scale);
  store<kLanes>(scratch.value_sums + feature, sums);
}

template <typename Number>
void pack_values(const Attention& p, const Number* values, const Scratch& scratch) {
  float* words = scratch.values;
  for_each_strip(p.features, [&](int64_t first, int64_t width) {
    for (int64_t j = 0; j < width; j += kLanes) pack_features(p, values, first + j, scratch, words + j, width);
    words += steps_of(p.tokens) * width;
  });
}

template <typename Number>
void pack_queries(const Tile<Number>& tile) {
  using Bytes = typename VectorOf<kLanes>::Bytes;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const Row<Number> query(tile.query(r), tile.p.features);
    const Levels levels = levels_of(query);
    quantise(query, levels, rounded_up(tile.p.features, kStep), [&](int64_t f, Bytes bytes) {
      *reinterpret_cast<Bytes*>(in_panel(tile.scratch.queries, tile.rows, r, f)) = bytes;
    });
    tile.scratch.of_queries[r] = {levels.scale, kShift - levels.zero_point};
  }
}

// The scores of a query, to the power of 2 once they are multiplied by `factor`.
template <typename Number>
class Scores {
 public:
  Scores(const Tile<Number>& tile, int64_t row)
      : factor(unit_of(tile, row) * kLog2E),
        row(tile.scratch.scores, tile.rows, row),
        key_scales(tile.scratch.key_scales),
        key_sums(tile.scratch.key_sums),
        offset(tile.scratch.of_queries[row].offset),
        added(tile, row, 1 / unit_of(tile, row)) {}
  // What becomes of sums, in their place.
  Vector<kLanes> finished(int64_t key) const {
    const auto sums = __builtin_convertvector(load<kLanes>(row.at(key)), Vector<kLanes>);
    const Vector<kLanes> start = load<kLanes>(key_sums + key) * offset;
    const auto scores = added.to(sums * load<kLanes>(key_scales + key) + start, key);
    store<kLanes>(reinterpret_cast<float*>(row.at(key)), scores);
    return scores;
  }
  Vector<kLanes> at(int64_t key) const { return load<kLanes>(reinterpret_cast<const float*>(row.at(key))); }

  const float factor;

 private:
  // What 1 stands for.
  static float unit_of(const Tile<Number>& tile, int64_t row) {
    return kGreater(kSmallestRange, tile.scratch.of_queries[row].scale) * tile.p.scale;
  }

  const PanelRow<int32_t> row;
  const float *key_scales, *key_sums;
  const float offset;
  const Added<Number> added;
};

// Keeps the weights of some keys as they will meet the values.
void keep(Vector<kLanes> weights, Input* to) { store<kLanes>(to, rounded<kLanes>(weights) - kShift); }

Vector<kLanes> finished(const Scratch& scratch, IntVector<kLanes> sums, int64_t feature) {
  if constexpr (kShift != 0) sums += load<kLanes>(scratch.value_sums + feature) * kShift;
  return __builtin_convertvector(sums, Vector<kLanes>) * load<kLanes>(scratch.value_scales + feature);
}

}  // namespace
}  // namespace lpvit
