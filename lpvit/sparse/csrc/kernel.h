// The arithmetic of a block-sparse linear layer, apart from torch: what operator.cpp asks of kernel.cpp.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid; K = kept blocks.
#pragma once

#include <cstdint>

namespace lpvit {

struct Problem {
  const float* inputs;          // (M, I)
  const float* values;          // (K, c, r): every block column by column, so that outputs are neighbours
  const int32_t* crow_indices;  // (R + 1,)
  const int32_t* col_indices;   // (K,)
  const float* bias;            // (O,) or null
  float* outputs;               // (M, O)
  int64_t tokens, in_features, out_features;
  int64_t block_rows, block_columns;  // r, c
  int64_t grid_rows;                  // R
  bool gelu;
};

// A rectangle of the output: the tokens [first_token, last_token) of the block-rows [first_row, last_row).
struct Part {
  int64_t first_token, last_token, first_row, last_row;
};

// The kernel for one instruction set.
struct Kernel {
  const char* name;
  int64_t tile_tokens;                // tokens that it works on at once
  int64_t (*depth)(const Problem&);   // inputs of a token that it works on at once
  void (*run)(const Problem&, const Part&, float* scratch);  // scratch: depth floats per token, aligned to 64 bytes
};

extern const Kernel avx512_kernel, avx2_kernel, sse_kernel, neon_kernel;

}  // namespace lpvit
