// The arithmetic of a block-sparse linear layer, apart from torch: what operator.cpp asks of kernel.cpp.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid; K = kept blocks.
#pragma once

#include <cstdint>

namespace lpvit {

// Its numbers are those of the kernel that it is for: float, or bfloat16 with an even c.
struct Problem {
  const void* inputs;           // (M, I)
  const void* values;           // (K, c, r): every block column by column, so that outputs are neighbours
  const int32_t* crow_indices;  // (R + 1,)
  const int32_t* col_indices;   // (K,)
  const void* bias;             // (O,) or null
  void* outputs;                // (M, O)
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
  int64_t tile_tokens;                     // tokens that it works on at once
  int64_t (*scratch_bytes)(const Problem&);  // per token
  void (*run)(const Problem&, const Part&, void* scratch);  // scratch: aligned to 64 bytes
};

extern const Kernel avx512_kernel, avx2_kernel, sse_kernel, neon_kernel;
extern const Kernel avx512_bf16_kernel;  // for bfloat16

}  // namespace lpvit
