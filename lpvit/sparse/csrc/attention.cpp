// Attention of short sequences for one instruction set, compiled as kernel.cpp is: with LPVIT_ISA, LPVIT_LANES,
// LPVIT_TILE_TOKENS and LPVIT_ARITHMETIC defined.
//
// The keys and values of a head are packed once, in strips of two vectors that run along keys and along features. Then
// tiles of up to LPVIT_TILE_TOKENS queries meet them one by one: in both products a tile by two vectors of sums stays in
// registers, and two vectors of a strip are multiplied by one number of each query, broadcast (in bfloat16 by two).
// Scores and softmax of a tile stay in the first level of the cache, the head in the second.

#include "attention.h"

#include <algorithm>
#include <limits>
#include <utility>

#include LPVIT_ARITHMETIC

namespace lpvit {
namespace {

constexpr int kLanes = LPVIT_LANES;
constexpr int kTileQueries = LPVIT_TILE_TOKENS;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int64_t rounded_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// Steps of a sum over so many numbers: each multiplies a word of them.
int64_t steps_of(int64_t numbers) { return (numbers + kStep - 1) / kStep; }

// Rows of numbers in memory, interleaved by cache lines: all rows of a tile are at offsets known to the compiler.
template <typename Number>
constexpr int kLine = 64 / sizeof(Number);

template <typename Number>
Number* in_panel(Number* panel, int64_t rows, int64_t row, int64_t column) {
  constexpr int line = kLine<Number>;
  return panel + (column / line * rows + row) * line + column % line;
}

// What is kept of a head while its tiles pass, and what of a tile.
struct Scratch {
  Scratch(const Attention& p, void* memory) : next(static_cast<char*>(memory)) {
    const int64_t tokens = rounded_up(p.tokens, kLine<Input>), features = rounded_up(p.features, kLine<Input>);
    keys = take<float>(steps_of(p.features) * tokens);
    values = take<float>(steps_of(p.tokens) * features);
    queries = take<Input>(kTileQueries * features);
    scores = take<float>(kTileQueries * tokens);
    weights = take<Input>(kTileQueries * tokens);
    outputs = take<float>(kTileQueries * features);
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
  float *scores, *outputs;   // panels
};

// Calls a function with the first column of every strip and its width, two vectors or, at the end, one.
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

// Strips (features, keys) of words, zero past the last.
void pack_keys(const Attention& p, const Input* keys, float* words) {
  const int64_t steps = steps_of(p.features);
  for_each_strip(p.tokens, [&](int64_t first, int64_t width) {
    for (int64_t j = 0; j < width; j += kLanes) {
      for (int64_t i = 0; i < steps; i += kLanes) {
        Vector<kLanes> square[kLanes];
        LPVIT_UNROLL
        for (int row = 0; row < kLanes; ++row) {
          const int64_t key = first + j + row;
          square[row] = words_of(keys + key * p.keys.token + i * kStep, key < p.tokens ? p.features - i * kStep : 0);
        }
        transpose<kLanes>(square);
        const int64_t count = std::min<int64_t>(steps - i, kLanes);
        for (int row = 0; row < count; ++row) store<kLanes>(words + (i + row) * width + j, square[row]);
      }
    }
    words += steps * width;
  });
}

// Strips (keys, features) of words, zero past the last.
void pack_values(const Attention& p, const Input* values, float* words) {
  const int64_t steps = steps_of(p.tokens), distance = p.values.token;
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

// The head that follows in memory, fetched meanwhile, strip by strip: the rows of one lie too far apart for the hardware
// to see them coming, and all at once they would have to be waited for.
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
        const Input* row = heads->of<Input>(image, head) + token * heads->token;
        for (int64_t f = 0; f < p.features; f += kLine<Input>) __builtin_prefetch(row + f, 0, 2);
      }
    }
  }

 private:
  const Attention& p;
  int64_t image, head, share, token = 0;
};

// Adds the product of a panel and a strip to a panel of sums.
template <int vectors, int rows>
void multiply(const Input* panel, const float* words, int64_t steps, float* sums) {
  Vector<kLanes> sum[rows][vectors];
  const auto for_each_sum = [&](auto&& act) __attribute__((always_inline)) {
    LPVIT_UNROLL
    for (int r = 0; r < rows; ++r) {
      LPVIT_UNROLL
      for (int v = 0; v < vectors; ++v) act(r, v, in_panel(sums, rows, r, v * kLanes));
    }
  };
  for_each_sum([&](int r, int v, float* place) { sum[r][v] = load<kLanes>(place); });
  for (int64_t step = 0; step < steps;) {
    const int64_t stop = std::min<int64_t>(steps, step + kLine<Input> / kStep);
    for (const Input* x = panel + step * kStep * rows; step < stop; ++step, x += kStep, words += vectors * kLanes) {
      Vector<kLanes> w[vectors];
      LPVIT_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = load<kLanes>(words + v * kLanes);
      for_each_sum(
          [&](int r, int v, float*) { sum[r][v] = multiply_add<kLanes>(x + r * kLine<Input>, w[v], sum[r][v]); });
    }
  }
  for_each_sum([&](int r, int v, float* place) { store<kLanes>(place, sum[r][v]); });
}

// Queries of a head that pass together.
struct Tile {
  const Attention& p;
  int64_t image, head, first, rows;
  const Scratch& scratch;
  Next& next;

  Input* outputs_of(int64_t row) const {
    const int64_t token = image * p.tokens + first + row;
    return static_cast<Input*>(p.outputs) + (token * p.heads + head) * p.features;
  }
};

// Adds the product of a panel of a tile and all strips of `columns` to a panel of sums; `smaller` counts the rows that a
// tile may have, less one.
template <int... smaller>
void multiply_strips(const Tile& tile, const Input* panel, const float* words, int64_t steps, int64_t columns,
                     float* sums, std::integer_sequence<int, smaller...>) {
  using Function = void (*)(const Input*, const float*, int64_t, float*);
  static constexpr Function narrow[] = {multiply<1, smaller + 1>...}, wide[] = {multiply<2, smaller + 1>...};
  for_each_strip(columns, [&](int64_t first, int64_t width) {
    tile.next.fetch_some();
    (width > kLanes ? wide : narrow)[tile.rows - 1](panel, words, steps, in_panel(sums, tile.rows, 0, first));
    words += steps * width;
  });
}

// The numbers of one query in a table (tables, T, T), or nothing.
Row<Input> row_of(const Tile& tile, const void* table, int64_t index, int64_t row) {
  const int64_t tokens = tile.p.tokens;
  if (!table) return {nullptr, 0};
  return {static_cast<const Input*>(table) + (index * tokens + tile.first + row) * tokens, tokens};
}

// Where the sums of the scores begin: bias and mask, divided by what will be multiplied; minus infinity past the last.
void start_scores(const Tile& tile) {
  const Attention& p = tile.p;
  Vector<kLanes> past_last[2] = {};  // of a vector that is whole, of the last one
  for (int64_t i = p.tokens % kLanes; i > 0 && i < kLanes; ++i) past_last[1][i] = -kInfinity;
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t f = 0; f < p.features; f += kLine<Input>) __builtin_prefetch(tile.outputs_of(r) + f, 1);
    const auto bias = row_of(tile, p.bias, tile.head, r), mask = row_of(tile, p.mask, tile.image % p.masks, r);
    for (int64_t k = 0; k < p.tokens; k += kLanes) {
      Vector<kLanes> start = past_last[k + kLanes > p.tokens];
      if (bias.inputs) start += bias.at(k) / p.scale;
      if (mask.inputs) start += mask.at(k) / p.scale;
      store<kLanes>(in_panel(tile.scratch.scores, tile.rows, r, k), start);
    }
  }
}

float greatest_score(const Tile& tile, int64_t row) {
  auto greatest = broadcast<kLanes>(-kInfinity);
  for (int64_t k = 0; k < tile.p.tokens; k += kLanes) {
    greatest = kGreater(load<kLanes>(in_panel(tile.scratch.scores, tile.rows, row, k)), greatest);
  }
  return reduced<kLanes>(greatest, kGreater);
}

// Exponentials of the scores of one query, relative to the greatest; the reciprocal of their sum. A query that no key is
// left to gets 0.
float softmax(const Tile& tile, int64_t row, float greatest) {
  const float factor = tile.p.scale * kLog2E, shift = greatest == -kInfinity ? 0 : greatest * factor;
  Vector<kLanes> sum = {};
  for (int64_t k = 0; k < tile.p.tokens; k += kLanes) {
    const auto score = load<kLanes>(in_panel(tile.scratch.scores, tile.rows, row, k));
    const auto weight = exp2_of_negative<kLanes>(score * factor - shift);
    sum += weight;
    store<kLanes>(in_panel(tile.scratch.weights, tile.rows, row, k), weight);
  }
  return greatest == -kInfinity ? 0 : 1 / reduced<kLanes>(sum, kSum);
}

void finish(const Tile& tile, const float* reciprocals) {
  const Attention& p = tile.p;
  for (int64_t r = 0; r < tile.rows; ++r) {
    Input* to = tile.outputs_of(r);
    for (int64_t f = 0; f < p.features; f += kLanes, to += kLanes) {
      const auto value = load<kLanes>(in_panel(tile.scratch.outputs, tile.rows, r, f)) * reciprocals[r];
      if (f + kLanes <= p.features) {
        store<kLanes>(to, value);
      } else {
        Input last[kLanes];
        store<kLanes>(last, value);
        std::copy_n(last, p.features - f, to);
      }
    }
  }
}

void attend(const Tile& tile) {
  const Attention& p = tile.p;
  const Scratch& scratch = tile.scratch;
  const auto sizes = std::make_integer_sequence<int, kTileQueries>{};
  const Input* queries = p.queries.of<Input>(tile.image, tile.head) + tile.first * p.queries.token;
  copy_to_panel<kLine<Input>>(queries, p.queries.token, tile.rows, p.features, rounded_up(p.features, kStep),
                              scratch.queries);
  start_scores(tile);
  multiply_strips(tile, scratch.queries, scratch.keys, steps_of(p.features), p.tokens, scratch.scores, sizes);
  float greatest[kTileQueries], reciprocals[kTileQueries];  // one loop each, so that the chains of rows overlap
  for (int64_t r = 0; r < tile.rows; ++r) greatest[r] = greatest_score(tile, r);
  for (int64_t r = 0; r < tile.rows; ++r) reciprocals[r] = softmax(tile, r, greatest[r]);
  std::fill_n(scratch.outputs, tile.rows * rounded_up(p.features, kLine<float>), 0.0f);
  multiply_strips(tile, scratch.weights, scratch.values, steps_of(p.tokens), p.features, scratch.outputs, sizes);
  finish(tile, reciprocals);
}

int64_t scratch_bytes(const Attention& p) { return Scratch(p, nullptr).next - static_cast<char*>(nullptr); }

void run(const Attention& p, const HeadPart& part, void* memory) {
  if (part.first_query == part.last_query) return;
  const Scratch scratch(p, memory);
  pack_keys(p, p.keys.of<Input>(part.image, part.head), scratch.keys);
  pack_values(p, p.values.of<Input>(part.image, part.head), scratch.values);
  const int64_t queries = part.last_query - part.first_query, tiles = (queries + kTileQueries - 1) / kTileQueries;
  Next next(p, part, tiles);
  for (int64_t tile = 0; tile < tiles; ++tile) {  // their sizes differ by one at most
    const int64_t first = queries * tile / tiles, last = queries * (tile + 1) / tiles;
    attend({p, part.image, part.head, part.first_query + first, last - first, scratch, next});
  }
}

}  // namespace

#define LPVIT_JOIN(name) name##_attention
#define LPVIT_ATTENTION_OF(name) LPVIT_JOIN(name)
extern const AttentionKernel LPVIT_ATTENTION_OF(LPVIT_ISA){kTileQueries, scratch_bytes, run};

}  // namespace lpvit
