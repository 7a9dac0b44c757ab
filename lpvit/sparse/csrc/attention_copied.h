// Attention in the numbers that lie in memory: what attention.cpp does in float32 and bfloat16.
#pragma once

#include "heads.h"

namespace lpvit {
namespace {

constexpr float kLogOfGreatestWeight = 0;  // to base 2

// Calls a function with a number of the kind that lies in memory.
template <typename Function>
void with_number(const Attention&, Function&& function) {
  function(Input{});
}

void pack_keys(const Attention& p, const Input* keys, const Scratch& scratch) {
  transpose_to_strips(keys, p.keys.token, p.tokens, p.features, scratch.keys);
}

// Strips (keys, features) of words, zero past the last.
void pack_values(const Attention& p, const Input* values, const Scratch& scratch) {
  const int64_t steps = steps_of(p.tokens), distance = p.values.token;
  float* words = scratch.values;
  for_each_strip(p.features, [&](int64_t first, int64_t width) {
    for (int64_t i = 0; i < steps; ++i) {
      const Input* from = values + i * kStep * distance;
      for (int64_t f = first; f < first + width; f += kLanes, words += kLanes) {
        if (f + kLanes <= p.features && (i + 1) * kStep <= p.tokens) {
          store<kLanes>(words, load_weights<kLanes>(from + f, distance));
          continue;
        }
        Input rest[kStep][kLanes] = {};
        for (int64_t s = 0; s < kStep && i * kStep + s < p.tokens; ++s) {
          const Input* row = from + s * distance;
          std::copy(row + std::min(f, p.features), row + std::min(f + kLanes, p.features), rest[s]);
        }
        store<kLanes>(words, load_weights<kLanes>(rest[0], kLanes));
      }
    }
  });
}

void pack_queries(const Tile<Input>& tile) {
  const Attention& p = tile.p;
  copy_to_panel<kLine<Input>>(tile.query(0), p.queries.token, tile.rows, p.features, rounded_up(p.features, kStep),
                              tile.scratch.queries);
}

// The scores of a query, to the power of 2 once they are multiplied by `factor`.
class Scores {
 public:
  Scores(const Tile<Input>& tile, int64_t row)
      : factor(tile.p.scale * kLog2E), row(tile.scratch.scores, tile.rows, row), added(tile, row, 1 / tile.p.scale) {}
  // What becomes of sums, in their place.
  Vector<kLanes> finished(int64_t key) const {
    if (!added.is_to(key)) return at(key);
    const auto scores = added.to(at(key), key);
    store<kLanes>(row.at(key), scores);
    return scores;
  }
  Vector<kLanes> at(int64_t key) const { return load<kLanes>(row.at(key)); }

  const float factor;

 private:
  const PanelRow<float> row;
  const Added<Input> added;
};

// Keeps the weights of some keys as they will meet the values.
void keep(Vector<kLanes> weights, Input* to) { store<kLanes>(to, weights); }

Vector<kLanes> finished(const Scratch&, Vector<kLanes> sums, int64_t) { return sums; }

}  // namespace
}  // namespace lpvit
