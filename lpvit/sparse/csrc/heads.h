// What attention keeps of a head and of a tile of its queries, and how that lies in memory.
//
// Panels hold rows, interleaved by cache lines. Strips hold what a panel is multiplied by, in words of kStep numbers: the
// words of neighbouring columns are neighbours, two vectors wide or, at the end, one.
#pragma once

#include <limits>

#include "attention.h"
#include LPVIT_ARITHMETIC

namespace lpvit {
namespace {

constexpr int kLanes = LPVIT_LANES;
constexpr int kTileQueries = LPVIT_TILE_TOKENS;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
using Summed = std::remove_cvref_t<decltype(Sum<1>{}[0])>;  // float, or int32 of integers

int64_t rounded_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// Steps of a sum over so many numbers: each multiplies a word of them.
int64_t steps_of(int64_t numbers) { return (numbers + kStep - 1) / kStep; }

template <typename Number>
constexpr int kLine = 64 / sizeof(Number);

template <typename Number>
Number* in_panel(Number* panel, int64_t rows, int64_t row, int64_t column) {
  constexpr int line = kLine<Number>;
  return panel + (column / line * rows + row) * line + column % line;
}

// A row of a panel, apart from what else is known of it, which a store of bytes might change.
template <typename Number>
class PanelRow {
 public:
  PanelRow(Number* panel, int64_t rows, int64_t row) : first(in_panel(panel, rows, row, 0)), rows(rows) {}
  Number* at(int64_t column) const { return in_panel(first, rows, 0, column); }

 private:
  Number* const first;
  const int64_t rows;
};

// What is kept of a head while its tiles pass, and what of a tile.
struct Scratch {
  Scratch(const Attention& p, void* memory) : next(static_cast<char*>(memory)) {
    const int64_t tokens = rounded_up(p.tokens, kLine<Input>), features = rounded_up(p.features, kLine<Input>);
    keys = take<float>(steps_of(p.features) * tokens);
    values = take<float>(steps_of(p.tokens) * features);
    queries = take<Input>(kTileQueries * features);
    scores = take<Summed>(kTileQueries * tokens);
    weights = take<Input>(kTileQueries * tokens);
    outputs = take<Summed>(kTileQueries * features);
    if constexpr (std::is_same_v<Summed, int32_t>) {
      key_bytes = take<Input>(tokens * features);
      key_means = take<float>(features);
      key_scales = take<float>(tokens);
      key_sums = take<float>(tokens);
      value_scales = take<float>(features);
      value_sums = take<int32_t>(features);
    }
  }
  template <typename Number>
  Number* take(int64_t count) {
    auto* const taken = reinterpret_cast<Number*>(next);
    next += rounded_up(count * sizeof(Number), 64);
    return taken;
  }

  char* next;
  float *keys, *values;      // strips of words
  Input *queries, *weights;  // panels
  Summed *scores, *outputs;  // panels
  // Of int8 only:
  Input* key_bytes;                  // (T, d), quantised, to be packed
  float* key_means;                  // (d,), taken off the keys
  float *key_scales, *value_scales;  // (T,) and (d,): what an integer stands for
  float* key_sums;                   // (T,): of the integers of a key, in the unit of its scores
  int32_t* value_sums;               // (d,): of the integers of a feature
  mutable Token of_queries[kTileQueries];  // how each query of a tile is quantised
};

// Calls a function with the first column of every strip and its width.
template <typename Function>
void for_each_strip(int64_t columns, Function&& function) {
  for (int64_t first = 0; first < columns; first += 2 * kLanes) {
    function(first, columns - first > kLanes ? 2 * kLanes : kLanes);
  }
}

// A vector of words of numbers, zero past the last.
Vector<kLanes> words_of(const Input* numbers, int64_t count) {
  Vector<kLanes> words = {};
  if (count >= kLanes * kStep) {
    std::memcpy(&words, numbers, sizeof words);
  } else if (count > 0) {
    std::memcpy(&words, numbers, count * sizeof(Input));
  }
  return words;
}

// Rows of numbers, so far apart, become columns of strips of words, zero past the last.
void transpose_to_strips(const Input* rows, int64_t distance, int64_t count, int64_t numbers, float* words) {
  const int64_t steps = steps_of(numbers);
  for_each_strip(count, [&](int64_t first, int64_t width) {
    for (int64_t j = 0; j < width; j += kLanes) {
      for (int64_t i = 0; i < steps; i += kLanes) {
        Vector<kLanes> square[kLanes];
        LPVIT_UNROLL
        for (int lane = 0; lane < kLanes; ++lane) {
          const int64_t row = first + j + lane;
          square[lane] = words_of(rows + row * distance + i * kStep, row < count ? numbers - i * kStep : 0);
        }
        transpose<kLanes>(square);
        const int64_t last = std::min<int64_t>(steps - i, kLanes);
        for (int lane = 0; lane < last; ++lane) store<kLanes>(words + (i + lane) * width + j, square[lane]);
      }
    }
    words += steps * width;
  });
}

// The head that follows in memory, fetched meanwhile, strip by strip: the rows of one lie too far apart for the hardware
// to see them coming, and all at once they would have to be waited for.
template <typename Number>
class Next {
 public:
  Next(const Attention& p, const HeadPart& part, int64_t tiles) : p(p) {
    const int64_t place = std::min(part.image * p.heads + part.head + 1, p.images * p.heads - 1);
    image = place / p.heads, head = place % p.heads;
    share = p.tokens / (tiles * ((p.tokens + p.features) / (2 * kLanes) + 1)) + 1;
  }
  void fetch_some() {
    for (const int64_t end = std::min(token + share, p.tokens); token < end; ++token) {
      for (const Heads* heads : {&p.keys, &p.values, &p.queries}) {
        const Number* row = heads->of<Number>(image, head) + token * heads->token;
        for (int64_t f = 0; f < p.features; f += kLine<Number>) __builtin_prefetch(row + f, 0, 2);
      }
    }
  }

 private:
  const Attention& p;
  int64_t image, head, share, token = 0;
};

// Queries of a head that pass together.
template <typename Number>
struct Tile {
  const Attention& p;
  int64_t image, head, first, rows;
  const Scratch& scratch;
  Next<Number>& next;

  const Number* query(int64_t row) const {
    return p.queries.of<Number>(image, head) + (first + row) * p.queries.token;
  }
  Number* outputs_of(int64_t row) const {
    const int64_t token = image * p.tokens + first + row;
    return static_cast<Number*>(p.outputs) + (token * p.heads + head) * p.features;
  }
  // The numbers of one query in a table (tables, T, T), or nothing.
  Row<Number> row_of(const void* table, int64_t index, int64_t row) const {
    if (!table) return {nullptr, 0};
    return {static_cast<const Number*>(table) + (index * p.tokens + first + row) * p.tokens, p.tokens};
  }
};

// What is added to the scores of one query: bias, mask, and minus infinity past the last key.
template <typename Number>
class Added {
 public:
  Added(const Tile<Number>& tile, int64_t row, float factor)
      : tokens(tile.p.tokens),
        factor(factor),
        bias(tile.row_of(tile.p.bias, tile.head, row)),
        mask(tile.row_of(tile.p.mask, tile.image % tile.p.masks, row)) {
    std::fill_n(past_last + tokens % kLanes, kLanes - tokens % kLanes, -kInfinity);
  }
  // Whether there is any in the vector of a key.
  bool is_to(int64_t key) const { return bias.inputs || mask.inputs || key + kLanes > tokens; }
  // Adds it, times the factor.
  Vector<kLanes> to(Vector<kLanes> scores, int64_t key) const {
    if (bias.inputs) scores += bias.at(key) * factor;
    if (mask.inputs) scores += mask.at(key) * factor;
    return key + kLanes > tokens ? scores + load<kLanes>(past_last) : scores;
  }

 private:
  const int64_t tokens;
  const float factor;
  const Row<Number> bias, mask;
  float past_last[kLanes] = {};
};

}  // namespace
}  // namespace lpvit
