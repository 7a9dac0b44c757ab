// Block-sparse linear layer for one instruction set and one kind of numbers, in the vector extensions of GCC and Clang.
// Compiled once for each, with LPVIT_ISA (the kernel's name), LPVIT_LANES (sums in a vector), LPVIT_TILE_TOKENS and
// LPVIT_ARITHMETIC (the header that says how numbers are stored, multiplied and finished) defined.
//
// A tile of up to LPVIT_TILE_TOKENS tokens by two vectors of outputs stays in registers while the kept blocks of a
// block-row stream past: a step loads two vectors of weights and multiplies them by one input of each token, broadcast;
// in bfloat16, weights of two columns by two inputs, in int8 of four by four. The inputs of a tile are copied beforehand
// into a panel (groups, tokens, inputs of a cache line), so that a block reads consecutive cache lines, at offsets known
// to the compiler, whatever the distance between two tokens' inputs.

#include "kernel.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include LPVIT_ARITHMETIC

namespace lpvit {
namespace {

constexpr int kLanes = LPVIT_LANES;
constexpr int kTileTokens = LPVIT_TILE_TOKENS;
constexpr int kGroup = 64 / sizeof(Input);     // inputs of a token that lie together in a panel: a cache line
constexpr int64_t kRowsInCache = 64 * 1024;  // weights of the block-rows that pass one tile before the next comes

// Tokens whose inputs lie in a panel.
struct Tile {
  int64_t first, tokens;
  const Input* panel;
  const Token* of_tokens;
};

// Some outputs of one block-row, and the blocks that add to them: outputs from row `offset` of the block-row on, of
// which those before `first` are another strip's and those from `last` on do not exist.
struct Strip {
  int64_t block_row;
  int64_t last_block, first_block = 0;
  int64_t offset = 0, first = 0, last = 0;
  bool starts = false, finishes = false;  // else sums are taken up from the outputs, or left there unfinished

  bool is_whole(int64_t floats) const { return first == 0 && last >= floats; }
};

// Sums of a tile from the outputs where the strip is less than whole vectors, token by token.
template <int floats>
void load_slowly(const Problem& p, const Strip& strip, const float* outputs, int64_t tokens, float* sums) {
  for (int64_t t = 0; t < tokens; ++t, outputs += p.out_features, sums += floats) {
    std::copy(outputs + strip.first, outputs + std::min<int64_t>(strip.last, floats), sums + strip.first);
  }
}

// And back, token by token, through GELU and onto the residual, which lies as the outputs do.
template <int lanes, int floats, typename Output>
void store_slowly(const Problem& p, const Strip& strip, const float* sums, int64_t tokens, Output* outputs,
                  const Output* residual) {
  const int64_t last = std::min<int64_t>(strip.last, floats);
  for (int64_t t = 0; t < tokens; ++t, outputs += p.out_features, sums += floats) {
    Output part[floats], others[floats] = {};
    Output* to = strip.is_whole(floats) ? outputs : part;
    const Output* other = residual ? residual + t * p.out_features : others;
    if (to == part && residual) other = std::copy(other + strip.first, other + last, others + strip.first) - last;
    for (int64_t i = 0; i < floats; i += lanes) {
      Vector<lanes> value = load<lanes>(sums + i);
      if (strip.finishes && p.gelu) value = gelu<lanes, Output>(value);
      if (strip.finishes && residual) value += load<lanes>(other + i);
      store<lanes>(to + i, value);
    }
    if (to == part) std::copy(part + strip.first, part + last, outputs + strip.first);
  }
}

template <int lanes, int vectors, int tokens>
void multiply_tile(const Problem& p, const Strip& strip, const Tile& tile) {
  constexpr int floats = vectors * lanes;
  Sum<lanes> sums[tokens][vectors];
  float spilled[tokens * floats];
  const auto for_each_token = [&](auto&& act) __attribute__((always_inline)) {
    LPVIT_UNROLL
    for (int t = 0; t < tokens; ++t) act(t);
  };
  const auto for_each_vector = [&](auto&& act) __attribute__((always_inline)) {
    LPVIT_UNROLL
    for (int v = 0; v < vectors; ++v) act(v, v * lanes);
  };
  const int64_t distance = p.out_features;  // which no store seems to change
  const int64_t first_output = strip.block_row * p.block_rows + strip.offset;
  const int64_t place = tile.first * distance + first_output;
  const bool whole = strip.is_whole(floats);
  const auto constants = constants_of<floats>(p, first_output, std::min<int64_t>(strip.last, floats));
  if (kStep > 1 || strip.starts) {  // with kStep > 1 there is one pass over the inputs
    for_each_vector([&](int v, int o) {
      const auto start = constants.template start_of<lanes>(o);
      for_each_token([&](int t) { sums[t][v] = start(tile.of_tokens[t]); });
    });
    with_outputs(p, [&](auto* outputs) {  // the lines arrive while the sums are made
      constexpr int line = 64 / sizeof *outputs;
      for (int t = 0; t < tokens; ++t) {
        for (int o = 0; o < floats; o += line) __builtin_prefetch(outputs + place + t * distance + o, 1);
      }
    });
  } else if constexpr (kStep == 1) {
    const float* outputs = static_cast<const float*>(p.outputs) + place;
    if (!whole) load_slowly<floats>(p, strip, outputs, tokens, spilled);
    const float* from = whole ? outputs : spilled;
    const int64_t apart = whole ? distance : floats;
    for_each_token([&](int t) {
      for_each_vector([&](int v, int o) { sums[t][v] = load<lanes>(from + t * apart + o); });
    });
  }
  const int64_t width = stored_columns(p, kStep);
  for (int64_t block = strip.first_block; block < strip.last_block; ++block) {
    const Weight* weights = static_cast<const Weight*>(p.values) + block * width * p.block_rows;
    weights += strip.offset * kInterleaved;
    const int64_t first = p.col_indices[block] * width, last = first + width;
    for (int64_t column = first; column < last;) {
      const int64_t stop = std::min(last, (column / kGroup + 1) * kGroup);
      const Input* x = tile.panel + column / kGroup * (tokens * kGroup) + column % kGroup;
      for (; column < stop; column += kStep, x += kStep, weights += kStep * p.block_rows) {
        Sum<lanes> w[vectors];
        for_each_vector([&](int v, int o) { w[v] = load_weights<lanes>(weights + o * kInterleaved, p.block_rows); });
        for_each_token([&](int t) {
          for_each_vector([&](int v, int) { sums[t][v] = multiply_add<lanes>(x + t * kGroup, w[v], sums[t][v]); });
        });
      }
    }
  }
  with_outputs(p, [&](auto* outputs) {
    using Output = std::remove_reference_t<decltype(*outputs)>;
    const Output* residual = p.residual ? static_cast<const Output*>(p.residual) + place : nullptr;
    outputs += place;
    const auto store_all = [&](auto* to, int64_t apart) __attribute__((always_inline)) {
      for_each_vector([&](int v, int o) {
        const auto finish = constants.template finish_of<lanes>(o);
        for_each_token([&](int t) { store<lanes>(to + t * apart + o, finish(tile.of_tokens[t], sums[t][v])); });
      });
    };
    if (whole && !(strip.finishes && (p.gelu || residual))) {
      store_all(outputs, distance);
    } else {
      store_all(spilled, floats);
      store_slowly<lanes, floats>(p, strip, spilled, tokens, outputs, residual);
    }
  });
}

using TileFunction = void (*)(const Problem&, const Strip&, const Tile&);

// The function for a number of tokens; `smaller` counts 0, 1, ... kTileTokens - 1.
template <int lanes, int vectors, int... smaller>
TileFunction tile_function(int64_t tokens, std::integer_sequence<int, smaller...>) {
  static constexpr TileFunction functions[] = {multiply_tile<lanes, vectors, smaller + 1>...};
  return functions[tokens - 1];
}

// All outputs of a block-row for a tile of tokens, in strips as wide as the height of the blocks allows. The last
// vector of a height that is no multiple of the lanes starts within the one before.
template <int lanes>
void multiply_block_row(const Problem& p, Strip strip, const Tile& tile) {
  const int64_t height = std::min(p.block_rows, p.out_features - strip.block_row * p.block_rows);
  const auto sizes = std::make_integer_sequence<int, kTileTokens>{};
  for (int64_t done = 0; done < height;) {
    TileFunction multiply = tile_function<lanes, 1>(tile.tokens, sizes);
    int64_t width = lanes;
    if constexpr (lanes == kLanes) {  // narrower vectors are for blocks lower than two of them
      if (done + 2 * lanes <= p.block_rows) {
        multiply = tile_function<lanes, 2>(tile.tokens, sizes);
        width = 2 * lanes;
      }
    }
    strip.offset = std::min(done, p.block_rows - width);
    strip.first = done - strip.offset;
    strip.last = height - strip.offset;
    multiply(p, strip, tile);
    done = strip.offset + width;
  }
}

// Inputs of a token in a panel that holds all of them.
int64_t stored_inputs(const Problem& p) {
  const int64_t blocks = (p.in_features + p.block_columns - 1) / p.block_columns;
  return std::max(p.in_features, blocks * stored_columns(p, kStep));
}

// Inputs that are multiplied in one go: whole blocks and whole groups, about kDepth.
int64_t depth_of(const Problem& p) {
  const int64_t unit = std::lcm<int64_t>(stored_columns(p, kStep), kGroup);
  const int64_t all = (stored_inputs(p) + unit - 1) / unit * unit;
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
  const int64_t end = p.crow_indices[row.block_row + 1], width = stored_columns(p, kStep);
  while (row.last_block < end && p.col_indices[row.last_block] * width < last) ++row.last_block;
  row.starts = first == 0;
  row.finishes = last == stored_inputs(p);
}

int64_t scratch_bytes(const Problem& p) { return depth_of(p) * sizeof(Input) + sizeof(Token); }

void run(const Problem& p, const Part& part, void* scratch) {
  const Tiles tiles(part);
  const int64_t depth = depth_of(p), inputs = stored_inputs(p);
  auto* const panels = static_cast<Input*>(scratch);
  auto* const of_tokens = reinterpret_cast<Token*>(panels + tiles.tokens * depth);
  const auto multiply_row = p.block_rows >= kLanes ? multiply_block_row<kLanes>
                            : p.block_rows >= 8    ? multiply_block_row<std::min(kLanes, 8)>
                                                   : multiply_block_row<1>;
  std::vector<Strip> rows;
  for (int64_t row = part.first_row; row < part.last_row; ++row) rows.push_back(Strip{row, p.crow_indices[row]});
  for (int64_t first = 0; first == 0 || first < inputs; first += depth) {
    const int64_t last = std::min(first + depth, inputs);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
      const int64_t start = tiles.start(tile);
      fill_panel(p, tiles.first + start, tiles.size(tile), first, last, depth, panels + start * depth,
                 of_tokens + start);
    }
    for (Strip& row : rows) take_blocks(p, first, last, row);
    for (auto row = rows.begin(); row < rows.end();) {
      const auto group = row;
      for (int64_t weights = 0; row < rows.end(); ++row) {
        weights += (row->last_block - row->first_block) * p.block_rows * p.block_columns;
        if (weights > kRowsInCache && row > group) break;
      }
      for (int64_t index = 0; index < tiles.count; ++index) {
        const int64_t start = tiles.start(index), size = tiles.size(index);
        const Input* panel = panels + start * depth - first * size;  // as if it began at 0
        const Tile tile{tiles.first + start, size, panel, of_tokens + start};
        std::for_each(group, row, [&](const Strip& r) { multiply_row(p, r, tile); });
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
