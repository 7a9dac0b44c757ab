// The arithmetic of a kernel as a program, for a processor that only an emulator has: a problem from standard input,
// its outputs to standard output. Compiled with LPVIT_ISA, as kernel.cpp, and LPVIT_INT8 for a kernel of int8.
//
// Input: int64 M, I, O, r, c, R, K, and 0 or 1 for bias, gelu, norm, residual; then inputs, values, crow_indices,
// col_indices, bias; for int8 scales and row_sums; norm_weight, norm_bias; residual.

#include "kernel.h"
#include "program.h"

#define JOIN(name) name##_kernel
#define KERNEL_OF(name) JOIN(name)

int main() {
  const lpvit::Kernel& kernel = lpvit::KERNEL_OF(LPVIT_ISA);
  const auto sizes = take<int64_t>(11);
  const int64_t tokens = sizes[0], in_features = sizes[1], out_features = sizes[2], kept = sizes[6];
  lpvit::Problem problem{};
  problem.tokens = tokens;
  problem.in_features = in_features;
  problem.out_features = out_features;
  problem.block_rows = sizes[3];
  problem.block_columns = sizes[4];
  problem.grid_rows = sizes[5];
  problem.gelu = sizes[8];
#ifdef LPVIT_INT8
  using Weight = int8_t;
  const int64_t columns = lpvit::stored_columns(problem, 4);
#else
  using Weight = float;
  const int64_t columns = problem.block_columns;
#endif
  const auto inputs = take<float>(tokens * in_features);
  const auto values = take<Weight>(kept * sizes[3] * columns);
  const auto crow_indices = take<int32_t>(sizes[5] + 1), col_indices = take<int32_t>(kept);
  const auto bias = take<float>(sizes[7] ? out_features : 0);
#ifdef LPVIT_INT8
  const auto scales = take<float>(out_features);
  const auto row_sums = take<int32_t>(out_features);
  problem.scales = scales.data();
  problem.row_sums = row_sums.data();
#endif
  const auto norm_weight = take<float>(sizes[9] ? in_features : 0), norm_bias = take<float>(norm_weight.size());
  const auto residual = take<float>(sizes[10] ? tokens * out_features : 0);
  problem.norm_weight = sizes[9] ? norm_weight.data() : nullptr;
  problem.norm_bias = norm_bias.data();
  problem.norm_epsilon = 1e-5f;
  problem.residual = sizes[10] ? residual.data() : nullptr;
  std::vector<float> outputs(tokens * out_features);
  problem.inputs = inputs.data();
  problem.values = values.data();
  problem.crow_indices = crow_indices.data();
  problem.col_indices = col_indices.data();
  problem.bias = sizes[7] ? bias.data() : nullptr;
  problem.outputs = outputs.data();
  const auto bytes = (tokens * kernel.scratch_bytes(problem) + 63) / 64 * 64;
  void* scratch = std::aligned_alloc(64, bytes);
  kernel.run(problem, {0, tokens, 0, problem.grid_rows}, scratch);
  std::fwrite(outputs.data(), sizeof(float), outputs.size(), stdout);
  std::free(scratch);
}
