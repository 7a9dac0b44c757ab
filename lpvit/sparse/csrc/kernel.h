// The arithmetic of a block-sparse linear layer, apart from torch: what operator.cpp asks of kernel.cpp.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid; K = kept blocks.
#pragma once

#include <cstdint>

namespace lpvit {

// Its numbers are those of the kernel that it is for: float; bfloat16 with an even c; or int8 for the values alone, with
// float bias and float or bfloat16 inputs and outputs.
struct Problem {
  const void* inputs;           // (M, I)
  const void* values;           // (K, c, r): every block column by column, so that outputs are neighbours;
                                // in int8 (K, ceil(c / 4), r, 4), so that four columns are, padded with zeros
  const int32_t* crow_indices;  // (R + 1,)
  const int32_t* col_indices;   // (K,)
  const void* bias;             // (O,) or null
  void* outputs;                // (M, O)
  int64_t tokens, in_features, out_features;
  int64_t block_rows, block_columns;  // r, c
  int64_t grid_rows;                  // R
  bool gelu;
  const float *norm_weight, *norm_bias;  // (I,): inputs go through LayerNorm first; or null
  float norm_epsilon;
  const void* residual;  // (M, O): added to what would be the outputs; or null
  // Of int8 only:
  const float* scales;      // (O,): a weight is its value times the scale of its output
  const int32_t* row_sums;  // (O,): the sum of an output's values
  bool bfloat16;            // inputs, residual and outputs
};

// Columns of a block in memory, if so many are multiplied at once.
inline int64_t stored_columns(const Problem& p, int64_t step) { return (p.block_columns + step - 1) / step * step; }

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
extern const Kernel avx512_vnni_bf16_kernel, avx512_vnni_kernel, avx_vnni_kernel, avx2_int8_kernel;  // for int8
extern const Kernel sse_int8_kernel, neon_dot_kernel, neon_int8_kernel;

}  // namespace lpvit
