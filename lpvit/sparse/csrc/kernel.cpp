// Block-sparse linear layer for one instruction set, in the vector extensions of GCC and Clang. Compiled once for each
// set, with LPVIT_ISA (its name), LPVIT_LANES (floats in a vector) and LPVIT_TILE_TOKENS defined; for bfloat16 also
// LPVIT_BF16.
//
// A tile of up to LPVIT_TILE_TOKENS tokens by two vectors of outputs stays in registers while the kept blocks of a
// block-row stream past: a step loads two vectors of weights and multiplies them by one input of each token, broadcast;
// in bfloat16, weights of two columns by two inputs, summed as floats. The inputs of a tile are copied beforehand into
// a panel (groups, tokens, inputs of a cache line), so that a block reads consecutive cache lines, at offsets known to
// the compiler, whatever the distance between two tokens' inputs.

#include "kernel.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#ifdef LPVIT_BF16
#include <immintrin.h>
#endif

namespace lpvit {
namespace {

#ifdef LPVIT_BF16
using Number = uint16_t;  // the bits of a bfloat16
#else
using Number = float;
#endif

constexpr int kLanes = LPVIT_LANES;
constexpr int kTileTokens = LPVIT_TILE_TOKENS;
constexpr int kStep = sizeof(float) / sizeof(Number);  // inputs of a token that are multiplied at once
constexpr int kGroup = 64 / sizeof(Number);            // inputs of a token that lie together in a panel: a cache line
// Inputs worked on at once, roughly. In bfloat16 all: unfinished sums are floats and cannot wait in the outputs.
constexpr int64_t kDepth = kStep == 1 ? 1536 : std::numeric_limits<int32_t>::max();
constexpr int64_t kRowsInCache = 64 * 1024;  // weights of the block-rows that pass one tile before the next comes

template <int lanes>
struct VectorOf {
  typedef float Float __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(4 * lanes), aligned(4)));
};
template <int lanes>
using Vector = typename VectorOf<lanes>::Float;

template <int lanes>
Vector<lanes> broadcast(float value) {
  return value - Vector<lanes>{};
}

template <int lanes>
Vector<lanes> load(const float* from) {
  return *reinterpret_cast<const Vector<lanes>*>(from);
}

template <int lanes>
void store(float* to, Vector<lanes> value) {
  *reinterpret_cast<Vector<lanes>*>(to) = value;
}

#ifndef LPVIT_BF16

float to_float(float number) { return number; }

template <int lanes>
Vector<lanes> load_weights(const float* column, int64_t) {
  return load<lanes>(column);
}

template <int lanes>
Vector<lanes> multiply_add(const float* x, Vector<lanes> weights, Vector<lanes> sum) {
  return sum + *x * weights;
}

#else

float to_float(uint16_t number) { return std::bit_cast<float>(uint32_t{number} << 16); }

// Rounds to the nearest bfloat16, to the even one of two, as the vector instruction does; NaN stays NaN.
uint16_t to_bfloat16(float number) {
  const auto bits = std::bit_cast<uint32_t>(number);
  if (number != number) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <int lanes>
void store(uint16_t* to, Vector<lanes> value) {
  if constexpr (lanes == 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
    std::memcpy(to, &rounded, sizeof rounded);
  } else if constexpr (lanes == 8) {
    const __m128bh rounded = _mm256_cvtneps_pbh(reinterpret_cast<__m256>(value));
    std::memcpy(to, &rounded, sizeof rounded);
  } else {
    *to = to_bfloat16(value[0]);
  }
}

// Neighbouring numbers, each in the low half of a word.
template <int lanes>
typename VectorOf<lanes>::Int widened(const uint16_t* from) {
  using Int = typename VectorOf<lanes>::Int;
  if constexpr (lanes == 16) {
    return reinterpret_cast<Int>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  } else if constexpr (lanes == 8) {
    return reinterpret_cast<Int>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  } else {
    return Int{*from};
  }
}

// Weights of a column and of the next one, in turn.
template <int lanes>
Vector<lanes> load_weights(const uint16_t* column, int64_t block_rows) {
  return reinterpret_cast<Vector<lanes>>(widened<lanes>(column) | widened<lanes>(column + block_rows) << 16);
}

template <int lanes>
Vector<lanes> multiply_add(const uint16_t* x, Vector<lanes> weights, Vector<lanes> sum) {
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
    const auto [low, high] = std::bit_cast<std::array<uint16_t, 2>>(weights[0]);
    return sum + to_float(x[0]) * to_float(low) + to_float(x[1]) * to_float(high);
  }
}

#endif

const Number* numbers(const void* memory) { return static_cast<const Number*>(memory); }

// exp(x) for x <= 0; 0 below -87. Powers of two by the exponent's bits, the rest (|z| <= ln(2) / 2) by Taylor's series.
template <int lanes>
Vector<lanes> exp_of_negative(Vector<lanes> x) {
  using Int = typename VectorOf<lanes>::Int;
  const Vector<lanes> bounded = x > -87.0f ? x : broadcast<lanes>(-87.0f);
  const Int power = __builtin_convertvector(bounded * 1.44269504f - 0.5f, Int);  // rounds to nearest, x being negative
  const Vector<lanes> rounded = __builtin_convertvector(power, Vector<lanes>);
  const Vector<lanes> z = bounded - rounded * 0.693359375f + rounded * 2.12194440e-4f;
  Vector<lanes> series = z * (1.0f / 720) + 1.0f / 120;
  series = series * z + 1.0f / 24;
  series = series * z + 1.0f / 6;
  series = series * z + 0.5f;
  series = series * z + 1.0f;
  series = series * z + 1.0f;
  const Int scale = (power + 127) << 23;
  return series * reinterpret_cast<Vector<lanes>>(scale);
}

// Exact GELU, x * Phi(x). Phi by Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26, on the side
// where nothing cancels: with z = |x| / sqrt(2), erfc(z) = (a1 t + ... + a5 t^5) exp(-z^2), t = 1 / (1 + p z).
template <int lanes>
Vector<lanes> gelu(Vector<lanes> x) {
  const Vector<lanes> z = (x < 0.0f ? -x : x) * 0.707106781f;
  const Vector<lanes> t = 1.0f / (1.0f + 0.3275911f * z);
  Vector<lanes> series = t * 1.061405429f - 1.453152027f;
  series = series * t + 1.421413741f;
  series = series * t - 0.284496736f;
  series = series * t + 0.254829592f;
  const Vector<lanes> tail = 0.5f * series * t * exp_of_negative<lanes>(-z * z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// Some outputs of one block-row, and the blocks that add to them: outputs from row `offset` of the block-row on, of
// which those before `first` are another strip's and those from `last` on do not exist.
struct Strip {
  int64_t block_row;
  int64_t last_block, first_block = 0;
  int64_t offset = 0, first = 0, last = 0;
  bool starts = false, finishes = false;  // else sums are taken up from the outputs, or left there unfinished

  bool is_whole(int64_t floats) const { return first == 0 && last >= floats; }
};

template <int lanes>
Vector<lanes> finished(const Problem& p, const Strip& strip, Vector<lanes> sum) {
  return strip.finishes && p.gelu ? gelu<lanes>(sum) : sum;
}

// Sums of a tile from the outputs where the strip is less than whole vectors, token by token; and back, through GELU.
template <int floats>
void load_slowly(const Problem& p, const Strip& strip, const Number* outputs, int64_t tokens, float* sums) {
  for (int64_t t = 0; t < tokens; ++t, outputs += p.out_features, sums += floats) {
    std::copy(outputs + strip.first, outputs + std::min<int64_t>(strip.last, floats), sums + strip.first);
  }
}

template <int lanes, int floats>
void store_slowly(const Problem& p, const Strip& strip, float* sums, int64_t tokens, Number* outputs) {
  const bool whole = strip.is_whole(floats);
  for (int64_t t = 0; t < tokens; ++t, outputs += p.out_features, sums += floats) {
    Number rounded[floats];
    Number* to = whole ? outputs : rounded;
    for (int64_t i = 0; i < floats; i += lanes) store<lanes>(to + i, finished<lanes>(p, strip, load<lanes>(sums + i)));
    if (!whole) std::copy(to + strip.first, to + std::min<int64_t>(strip.last, floats), outputs + strip.first);
  }
}

// The loops over tokens and vectors must be unrolled: only then do the sums live in registers.
#define LPVIT_UNROLL _Pragma("GCC unroll 16")

template <int lanes, int vectors, int tokens>
void multiply_tile(const Problem& p, const Strip& strip, const Number* panel, Number* outputs) {
  constexpr int floats = vectors * lanes;
  Vector<lanes> sums[tokens][vectors];
  float spilled[tokens * floats];
  const auto for_each_sum = [&](auto&& act) __attribute__((always_inline)) {
    LPVIT_UNROLL
    for (int t = 0; t < tokens; ++t) {
      LPVIT_UNROLL
      for (int v = 0; v < vectors; ++v) act(t, v, v * lanes);
    }
  };
  const int64_t first_output = strip.block_row * p.block_rows + strip.offset;
  const bool whole = strip.is_whole(floats);
  outputs += first_output;
  if (kStep > 1 || strip.starts) {  // with kStep > 1 there is one pass over the inputs
    float bias[floats] = {};
    if (p.bias) {
      const Number* from = numbers(p.bias) + first_output;
      std::transform(from, from + std::min<int64_t>(strip.last, floats), bias, [](Number n) { return to_float(n); });
    }
    for_each_sum([&](int t, int v, int o) { sums[t][v] = load<lanes>(bias + o); });
    for (int t = 0; t < tokens; ++t) {  // the lines arrive while the sums are made
      for (int o = 0; o < floats; o += lanes) __builtin_prefetch(outputs + t * p.out_features + o, 1);
    }
  } else if constexpr (kStep == 1) {
    if (whole) {
      for_each_sum([&](int t, int v, int o) { sums[t][v] = load<lanes>(outputs + t * p.out_features + o); });
    } else {
      load_slowly<floats>(p, strip, outputs, tokens, spilled);
      for_each_sum([&](int t, int v, int o) { sums[t][v] = load<lanes>(spilled + t * floats + o); });
    }
  }
  for (int64_t block = strip.first_block; block < strip.last_block; ++block) {
    const Number* weights = numbers(p.values) + block * p.block_columns * p.block_rows + strip.offset;
    const int64_t first = p.col_indices[block] * p.block_columns, last = first + p.block_columns;
    for (int64_t column = first; column < last;) {
      const int64_t stop = std::min(last, (column / kGroup + 1) * kGroup);
      const Number* x = panel + column / kGroup * (tokens * kGroup) + column % kGroup;
      for (; column < stop; column += kStep, x += kStep, weights += kStep * p.block_rows) {
        Vector<lanes> w[vectors];
        LPVIT_UNROLL
        for (int v = 0; v < vectors; ++v) w[v] = load_weights<lanes>(weights + v * lanes, p.block_rows);
        for_each_sum([&](int t, int v, int) { sums[t][v] = multiply_add<lanes>(x + t * kGroup, w[v], sums[t][v]); });
      }
    }
  }
  if (whole && !(strip.finishes && p.gelu)) {
    for_each_sum([&](int t, int v, int o) { store<lanes>(outputs + t * p.out_features + o, sums[t][v]); });
  } else {
    for_each_sum([&](int t, int v, int o) { store<lanes>(spilled + t * floats + o, sums[t][v]); });
    store_slowly<lanes, floats>(p, strip, spilled, tokens, outputs);
  }
}

using TileFunction = void (*)(const Problem&, const Strip&, const Number*, Number*);

// The function for a number of tokens; `smaller` counts 0, 1, ... kTileTokens - 1.
template <int lanes, int vectors, int... smaller>
TileFunction tile_function(int64_t tokens, std::integer_sequence<int, smaller...>) {
  static constexpr TileFunction functions[] = {multiply_tile<lanes, vectors, smaller + 1>...};
  return functions[tokens - 1];
}

// All outputs of a block-row for a tile of tokens, in strips as wide as the height of the blocks allows. The last
// vector of a height that is no multiple of the lanes starts within the one before.
template <int lanes>
void multiply_block_row(const Problem& p, Strip strip, const Number* panel, int64_t tokens, Number* outputs) {
  const int64_t height = std::min(p.block_rows, p.out_features - strip.block_row * p.block_rows);
  const auto sizes = std::make_integer_sequence<int, kTileTokens>{};
  for (int64_t done = 0; done < height;) {
    TileFunction multiply = tile_function<lanes, 1>(tokens, sizes);
    int64_t width = lanes;
    if constexpr (lanes == kLanes) {  // narrower vectors are for blocks lower than two of them
      if (done + 2 * lanes <= p.block_rows) {
        multiply = tile_function<lanes, 2>(tokens, sizes);
        width = 2 * lanes;
      }
    }
    strip.offset = std::min(done, p.block_rows - width);
    strip.first = done - strip.offset;
    strip.last = height - strip.offset;
    multiply(p, strip, panel, outputs);
    done = strip.offset + width;
  }
}

// Copies inputs [first, last) of some tokens into a panel, with zeros up to `padded` inputs.
void fill_panel(const Problem& p, int64_t first_token, int64_t tokens, int64_t first, int64_t last, int64_t padded,
                Number* panel) {
  const Number* inputs = numbers(p.inputs) + first_token * p.in_features + first;
  const int64_t count = last - first, whole = count / kGroup * kGroup;
  for (int64_t t = 0; t < tokens; ++t, inputs += p.in_features) {
    Number* to = panel + t * kGroup;
    for (int64_t i = 0; i < whole; i += kGroup, to += tokens * kGroup) std::copy_n(inputs + i, kGroup, to);
    for (int64_t i = whole; i < padded; i += kGroup, to += tokens * kGroup) {
      const int64_t rest = std::clamp<int64_t>(count - i, 0, kGroup);
      std::copy_n(inputs + i, rest, to);
      std::fill(to + rest, to + kGroup, Number{0});
    }
  }
}

// Inputs that are multiplied in one go: whole blocks and whole groups, about kDepth.
int64_t depth_of(const Problem& p) {
  const int64_t unit = std::lcm<int64_t>(p.block_columns, kGroup);
  const int64_t all = (p.in_features + unit - 1) / unit * unit;
  const int64_t parts = std::max<int64_t>((all + kDepth - 1) / kDepth, 1);
  return std::max((all / unit + parts - 1) / parts, int64_t{1}) * unit;
}

// Tokens of a part in tiles whose sizes differ by one at most.
struct Tiles {
  explicit Tiles(const Part& part)
      : first(part.first_token), tokens(part.last_token - first), count((tokens + kTileTokens - 1) / kTileTokens) {}

  int64_t start(int64_t tile) const { return tokens * tile / count; }
  int64_t size(int64_t tile) const { return start(tile + 1) - start(tile); }

  int64_t first, tokens, count;
};

// Moves a strip on to the blocks of its block-row between two inputs.
void take_blocks(const Problem& p, int64_t first, int64_t last, Strip& row) {
  row.first_block = row.last_block;
  const int64_t end = p.crow_indices[row.block_row + 1];
  while (row.last_block < end && p.col_indices[row.last_block] * p.block_columns < last) ++row.last_block;
  row.starts = first == 0;
  row.finishes = last == p.in_features;
}

int64_t scratch_bytes(const Problem& p) { return depth_of(p) * sizeof(Number); }

void run(const Problem& p, const Part& part, void* memory) {
  auto* scratch = static_cast<Number*>(memory);
  const Tiles tiles(part);
  const int64_t depth = depth_of(p);
  const auto multiply_row = p.block_rows >= kLanes ? multiply_block_row<kLanes>
                            : p.block_rows >= 8    ? multiply_block_row<std::min(kLanes, 8)>
                                                   : multiply_block_row<1>;
  std::vector<Strip> rows;
  for (int64_t row = part.first_row; row < part.last_row; ++row) rows.push_back(Strip{row, p.crow_indices[row]});
  for (int64_t first = 0; first == 0 || first < p.in_features; first += depth) {
    const int64_t last = std::min(first + depth, p.in_features);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      Number* panel = scratch + tiles.start(tile) * depth;
      fill_panel(p, tiles.first + tiles.start(tile), tiles.size(tile), first, last, depth, panel);
    }
    for (Strip& row : rows) take_blocks(p, first, last, row);
    for (auto row = rows.begin(); row < rows.end();) {
      const auto group = row;
      for (int64_t weights = 0; row < rows.end(); ++row) {
        weights += (row->last_block - row->first_block) * p.block_rows * p.block_columns;
        if (weights > kRowsInCache && row > group) break;
      }
      for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const Number* panel = scratch + tiles.start(tile) * depth - first * tiles.size(tile);  // as if it began at 0
        Number* outputs = static_cast<Number*>(p.outputs) + (tiles.first + tiles.start(tile)) * p.out_features;
        std::for_each(group, row, [&](const Strip& r) { multiply_row(p, r, panel, tiles.size(tile), outputs); });
      }
    }
  }
}

}  // namespace

#define LPVIT_JOIN(name) name##_kernel
#define LPVIT_KERNEL_OF(name) LPVIT_JOIN(name)
#define LPVIT_TEXT(name) #name
#define LPVIT_TEXT_OF(name) LPVIT_TEXT(name)
extern const Kernel LPVIT_KERNEL_OF(LPVIT_ISA){LPVIT_TEXT_OF(LPVIT_ISA), kTileTokens, scratch_bytes, run};

}  // namespace lpvit
