// Attention of short sequences for one instruction set, compiled as kernel.cpp is: with LPVIT_ISA, LPVIT_LANES,
// LPVIT_TILE_TOKENS, LPVIT_ARITHMETIC and LPVIT_ATTENTION defined.
//
// The keys and values of a head are packed once, in strips of two vectors that run along keys and along features. Then
// tiles of up to LPVIT_TILE_TOKENS queries meet them one by one: in both products a tile by two vectors of sums stays in
// registers, and two vectors of a strip are multiplied by one number of each query, broadcast (in bfloat16 by two, in int8
// by four). Scores and softmax of a tile stay in the first level of the cache, the head in the second.

#include "attention.h"

#include <algorithm>
#include <utility>

#include "heads.h"
#include LPVIT_ATTENTION

namespace lpvit {
namespace {

// The product of a panel and a strip, as a panel.
template <int vectors, int rows>
void multiply(const Input* panel, const float* words, int64_t steps, Summed* sums) {
  Sum<kLanes> sum[rows][vectors] = {};
  const auto for_each_sum = [&](auto&& act) __attribute__((always_inline)) {
    LPVIT_UNROLL
    for (int r = 0; r < rows; ++r) {
      LPVIT_UNROLL
      for (int v = 0; v < vectors; ++v) act(r, v, in_panel(sums, rows, r, v * kLanes));
    }
  };
  for (int64_t step = 0; step < steps;) {
    const int64_t stop = std::min<int64_t>(steps, step + kLine<Input> / kStep);
    for (const Input* x = panel + step * kStep * rows; step < stop; ++step, x += kStep, words += vectors * kLanes) {
      Sum<kLanes> w[vectors];
      LPVIT_UNROLL
      for (int v = 0; v < vectors; ++v) w[v] = reinterpret_cast<Sum<kLanes>>(load<kLanes>(words + v * kLanes));
      for_each_sum(
          [&](int r, int v, Summed*) { sum[r][v] = multiply_add<kLanes>(x + r * kLine<Input>, w[v], sum[r][v]); });
    }
  }
  for_each_sum([&](int r, int v, Summed* place) { store<kLanes>(place, sum[r][v]); });
}

// The product of a panel of a tile and all strips of `columns`, as a panel; `smaller` counts the rows that a tile may have,
// less one.
template <typename Number, int... smaller>
void multiply_strips(const Tile<Number>& tile, const Input* panel, const float* words, int64_t steps, int64_t columns,
                     Summed* sums, std::integer_sequence<int, smaller...>) {
  using Function = void (*)(const Input*, const float*, int64_t, Summed*);
  static constexpr Function narrow[] = {multiply<1, smaller + 1>...}, wide[] = {multiply<2, smaller + 1>...};
  for_each_strip(columns, [&](int64_t first, int64_t width) {
    tile.next.fetch_some();
    (width > kLanes ? wide : narrow)[tile.rows - 1](panel, words, steps, in_panel(sums, tile.rows, 0, first));
    words += steps * width;
  });
}

template <typename Number>
float greatest_score(const Tile<Number>& tile, int64_t row) {
  const Scores scores(tile, row);
  auto greatest = broadcast<kLanes>(-kInfinity);
  const int64_t tokens = tile.p.tokens;
  for (int64_t k = 0; k < tokens; k += kLanes) greatest = kGreater(scores.finished(k), greatest);
  return reduced<kLanes>(greatest, kGreater);
}

// Weights of the keys for one query: exponentials of the scores, relative to the largest; the reciprocal of their sum. A
// query that no key is left to gets 0.
template <typename Number>
float softmax(const Tile<Number>& tile, int64_t row, float greatest) {
  const Scores scores(tile, row);
  const bool is_lost = greatest == -kInfinity;
  const PanelRow kept(tile.scratch.weights, tile.rows, row);
  const float shift = (is_lost ? 0 : greatest * scores.factor) - kLogOfGreatestWeight;
  Vector<kLanes> sum = {};
  for (int64_t k = 0, tokens = tile.p.tokens; k < tokens; k += kLanes) {
    const auto weights = exp2<kLanes, Input>(scores.at(k) * scores.factor - shift);
    keep(weights, kept.at(k));
    sum += weights;
  }
  const float whole = reduced<kLanes>(sum, kSum);
  return is_lost ? 0 * whole : 1 / whole;  // NaN if one of them is none
}

template <typename Number>
void finish(const Tile<Number>& tile, const float* reciprocals) {
  const Attention& p = tile.p;
  for (int64_t r = 0; r < tile.rows; ++r) {
    Number* to = tile.outputs_of(r);
    for (int64_t f = 0; f < p.features; f += kLanes, to += kLanes) {
      const auto sums = load<kLanes>(in_panel(tile.scratch.outputs, tile.rows, r, f));
      const auto value = finished(tile.scratch, sums, f) * reciprocals[r];
      if (f + kLanes <= p.features) {
        store<kLanes>(to, value);
      } else {
        Number last[kLanes];
        store<kLanes>(last, value);
        std::copy_n(last, p.features - f, to);
      }
    }
  }
}

template <typename Number>
void attend(const Tile<Number>& tile) {
  const Attention& p = tile.p;
  const Scratch& scratch = tile.scratch;
  const auto sizes = std::make_integer_sequence<int, kTileQueries>{};
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t f = 0; f < p.features; f += kLine<Number>) __builtin_prefetch(tile.outputs_of(r) + f, 1);
  }
  pack_queries(tile);
  multiply_strips(tile, scratch.queries, scratch.keys, steps_of(p.features), p.tokens, scratch.scores, sizes);
  float greatest[kTileQueries], reciprocals[kTileQueries];  // one loop each, so that the chains of rows overlap
  for (int64_t r = 0; r < tile.rows; ++r) greatest[r] = greatest_score(tile, r);
  for (int64_t r = 0; r < tile.rows; ++r) reciprocals[r] = softmax(tile, r, greatest[r]);
  multiply_strips(tile, scratch.weights, scratch.values, steps_of(p.tokens), p.features, scratch.outputs, sizes);
  finish(tile, reciprocals);
}

template <typename Number>
void run_numbers(const Attention& p, const HeadPart& part, const Scratch& scratch) {
  pack_keys(p, p.keys.of<Number>(part.image, part.head), scratch);
  pack_values(p, p.values.of<Number>(part.image, part.head), scratch);
  const int64_t queries = part.last_query - part.first_query, tiles = (queries + kTileQueries - 1) / kTileQueries;
  Next<Number> next(p, part, tiles);
  for (int64_t tile = 0; tile < tiles; ++tile) {  // their sizes differ by one at most
    const int64_t first = queries * tile / tiles, last = queries * (tile + 1) / tiles;
    attend(Tile<Number>{p, part.image, part.head, part.first_query + first, last - first, scratch, next});
  }
}

int64_t scratch_bytes(const Attention& p) { return Scratch(p, nullptr).next - static_cast<char*>(nullptr); }

void run(const Attention& p, const HeadPart& part, void* memory) {
  if (part.first_query == part.last_query) return;
  const Scratch scratch(p, memory);
  with_number(p, [&]<typename Number>(Number) { run_numbers<Number>(p, part, scratch); });
}

}  // namespace

#define LPVIT_JOIN(name) name##_attention
#define LPVIT_ATTENTION_OF(name) LPVIT_JOIN(name)
extern const AttentionKernel LPVIT_ATTENTION_OF(LPVIT_ISA){kTileQueries, scratch_bytes, run};

}  // namespace lpvit
