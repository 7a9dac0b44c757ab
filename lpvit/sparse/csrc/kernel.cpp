// Block-sparse linear layer for one instruction set, in the vector extensions of GCC and Clang. Compiled once for each
// set, with LPVIT_ISA (its name), LPVIT_LANES (floats in a vector) and LPVIT_TILE_TOKENS defined.
//
// A tile of up to LPVIT_TILE_TOKENS tokens by two vectors of outputs stays in registers while the kept blocks of a
// block-row stream past: every step loads two vectors of weights, and multiplies them by one input of each token,
// broadcast. The tile's inputs are copied beforehand into a panel (I / 16, tokens, 16): then a block reads consecutive
// cache lines at offsets known to the compiler, however far apart the inputs of two tokens lie.

#include "kernel.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace lpvit {
namespace {

constexpr int kLanes = LPVIT_LANES;
constexpr int kTileTokens = LPVIT_TILE_TOKENS;
constexpr int kGroup = 16;  // inputs of a token that lie together in a panel: one cache line

template <int lanes>
struct VectorOf {
  typedef float Float __attribute__((vector_size(4 * lanes), aligned(4)));
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
Vector<lanes> load_some(const float* from, int64_t count) {
  if (count >= lanes) return load<lanes>(from);
  Vector<lanes> result{};
  if (count > 0) std::memcpy(&result, from, count * sizeof(float));
  return result;
}

template <int lanes>
void store_some(float* to, Vector<lanes> value, int64_t count) {
  if (count >= lanes) {
    *reinterpret_cast<Vector<lanes>*>(to) = value;
  } else if (count > 0) {
    std::memcpy(to, &value, count * sizeof(float));
  }
}

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
  return series * reinterpret_cast<const Vector<lanes>&>(scale);
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

// Some outputs of one block-row: `vectors` vectors from row `offset` of the blocks on, of which `count` are stored.
struct Strip {
  int64_t block_row, offset, count;
};

template <int lanes, int vectors, int tokens>
void multiply_tile(const Problem& p, const Strip& strip, const float* panel, float* outputs) {
  Vector<lanes> sums[tokens][vectors];
  for (int v = 0; v < vectors; ++v) {
    const float* bias = p.bias + strip.block_row * p.block_rows + strip.offset + v * lanes;
    const Vector<lanes> start = p.bias ? load_some<lanes>(bias, strip.count - v * lanes) : Vector<lanes>{};
    for (int t = 0; t < tokens; ++t) sums[t][v] = start;
  }
  outputs += strip.block_row * p.block_rows + strip.offset;
  for (int t = 0; t < tokens; ++t) {  // fetched while the sums are made: the stores then hit the cache
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(outputs + t * p.out_features + v * lanes, 1);
  }
  const int64_t end = p.crow_indices[strip.block_row + 1];
  for (int64_t block = p.crow_indices[strip.block_row]; block < end; ++block) {
    const float* weights = p.values + block * p.block_columns * p.block_rows + strip.offset;
    const int64_t first = p.col_indices[block] * p.block_columns, last = first + p.block_columns;
    for (int64_t column = first; column < last;) {
      const int64_t stop = std::min(last, (column / kGroup + 1) * kGroup);
      const float* x = panel + column / kGroup * (tokens * kGroup) + column % kGroup;
      for (; column < stop; ++column, ++x, weights += p.block_rows) {
        Vector<lanes> w[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) w[v] = load<lanes>(weights + v * lanes);
#pragma GCC unroll 16
        for (int t = 0; t < tokens; ++t) {
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v) sums[t][v] += x[t * kGroup] * w[v];
        }
      }
    }
  }
  for (int t = 0; t < tokens; ++t, outputs += p.out_features) {
    for (int v = 0; v < vectors; ++v) {
      const Vector<lanes> result = p.gelu ? gelu<lanes>(sums[t][v]) : sums[t][v];
      store_some<lanes>(outputs + v * lanes, result, strip.count - v * lanes);
    }
  }
}

using TileFunction = void (*)(const Problem&, const Strip&, const float*, float*);

template <int lanes, int vectors, int... smaller>
TileFunction tile_function(int64_t tokens, std::integer_sequence<int, smaller...>) {
  static constexpr TileFunction functions[] = {multiply_tile<lanes, vectors, smaller + 1>...};
  return functions[tokens - 1];
}

template <int lanes, int vectors>
void multiply(const Problem& p, const Strip& strip, int64_t tokens, const float* panel, float* outputs) {
  tile_function<lanes, vectors>(tokens, std::make_integer_sequence<int, kTileTokens>{})(p, strip, panel, outputs);
}

// All outputs of a block-row, as wide as the block's height allows. The last vector of a height that is no multiple of
// the lanes starts earlier and computes some outputs again.
template <int lanes>
void multiply_block_row(const Problem& p, int64_t block_row, int64_t tokens, const float* panel, float* outputs) {
  const int64_t valid = std::min(p.block_rows, p.out_features - block_row * p.block_rows);
  int64_t offset = 0;
  for (; offset + 2 * lanes <= p.block_rows && offset < valid; offset += 2 * lanes) {
    multiply<lanes, 2>(p, {block_row, offset, valid - offset}, tokens, panel, outputs);
  }
  while (offset < valid) {
    offset = std::min(offset, p.block_rows - lanes);
    multiply<lanes, 1>(p, {block_row, offset, valid - offset}, tokens, panel, outputs);
    offset += lanes;
  }
}

int64_t padded_inputs(const Problem& p) {
  const int64_t columns = (p.in_features + p.block_columns - 1) / p.block_columns * p.block_columns;
  return (columns + kGroup - 1) / kGroup * kGroup;
}

void fill_panel(const Problem& p, int64_t first_token, int64_t tokens, float* panel) {
  const float* inputs = p.inputs + first_token * p.in_features;
  const int64_t whole = p.in_features / kGroup * kGroup, padded = padded_inputs(p);
  for (int64_t t = 0; t < tokens; ++t, inputs += p.in_features) {
    float* to = panel + t * kGroup;
    for (int64_t i = 0; i < whole; i += kGroup, to += tokens * kGroup) std::memcpy(to, inputs + i, 4 * kGroup);
    for (int64_t i = whole; i < padded; i += kGroup, to += tokens * kGroup) {
      const int64_t rest = std::clamp<int64_t>(p.in_features - i, 0, kGroup);
      std::memcpy(to, inputs + i, rest * sizeof(float));
      std::fill(to + rest, to + kGroup, 0.0f);
    }
  }
}

int64_t scratch_floats(const Problem& p, int64_t tokens) { return tokens * padded_inputs(p); }

void run(const Problem& p, const Part& part, float* scratch) {
  const int64_t tokens = part.last_token - part.first_token;
  const int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  const int64_t panel_floats = padded_inputs(p);  // per token
  const auto start = [&](int64_t tile) { return tokens * tile / tiles; };  // tiles differ by one token at most
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = start(tile);
    fill_panel(p, part.first_token + first, start(tile + 1) - first, scratch + first * panel_floats);
  }
  const auto block_row_function = p.block_rows >= kLanes ? multiply_block_row<kLanes>
                                  : p.block_rows >= 8    ? multiply_block_row<std::min(kLanes, 8)>
                                                         : multiply_block_row<1>;
  for (int64_t row = part.first_row; row < part.last_row; ++row) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = start(tile);
      float* outputs = p.outputs + (part.first_token + first) * p.out_features;
      block_row_function(p, row, start(tile + 1) - first, scratch + first * panel_floats, outputs);
    }
  }
}

}  // namespace

#define LPVIT_JOIN(name) name##_kernel
#define LPVIT_KERNEL_OF(name) LPVIT_JOIN(name)
#define LPVIT_TEXT(name) #name
#define LPVIT_TEXT_OF(name) LPVIT_TEXT(name)
extern const Kernel LPVIT_KERNEL_OF(LPVIT_ISA){LPVIT_TEXT_OF(LPVIT_ISA), kTileTokens, scratch_floats, run};

}  // namespace lpvit
