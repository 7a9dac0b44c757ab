// lpvit::block_sparse_linear, lpvit::attention, and both in int8, on the CPU, through torch's stable ABI: checks and
// threads.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "running.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name in torch 2.11
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace lpvit {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's pool, for `run`.
struct Threads {
  static int64_t count() { return torch::stable::get_num_threads(); }
  template <typename Function>
  static void run(int64_t times, Function&& function) {
    torch::stable::parallel_for(0, times, 1, [&](int64_t, int64_t) { function(); });
  }
};

Kernels chosen_kernels = usable_kernels().front();

const Kernel* kernel_of(ScalarType values) {
  return values == ScalarType::Float      ? chosen_kernels.for_float
         : values == ScalarType::BFloat16 ? chosen_kernels.for_bfloat16
                                          : nullptr;
}

const AttentionKernel* attention_of(ScalarType numbers) {
  return numbers == ScalarType::Float      ? chosen_kernels.attention_of_float
         : numbers == ScalarType::BFloat16 ? chosen_kernels.attention_of_bfloat16
                                           : nullptr;
}

// A copy only where one is needed: even a call that does nothing costs time, through torch's dispatcher.
Tensor made_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The values (K, r, c), or (K, r, ceil(c / 4), 4), as the kernel reads them: columns, or groups of them, before rows; a
// copy where they are not laid out so.
Tensor by_columns(const Tensor& values) {
  const int64_t rows = values.size(1), columns = values.size(2), together = values.dim() == 4 ? values.size(3) : 1;
  const bool are_so = values.stride(1) == together && values.stride(2) == together * rows &&
                      values.stride(0) == together * rows * columns &&
                      (values.dim() == 3 || values.stride(3) == 1);
  return are_so ? values : torch::stable::contiguous(torch::stable::transpose(values, 1, 2));
}

// An operator of ours that is written in Python.
template <typename... Arguments>
Tensor call(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void check(const Tensor& values, const Tensor& crow_indices, const Tensor& col_indices,
           const std::optional<Tensor>& bias, ScalarType bias_type, int64_t out_features) {
  const auto is_int = [](const Tensor& t) { return t.scalar_type() == ScalarType::Int && t.is_contiguous(); };
  STD_TORCH_CHECK(is_int(crow_indices) && is_int(col_indices), "indices: expected contiguous int32");
  const int64_t grid_rows = (out_features + values.size(1) - 1) / values.size(1);
  STD_TORCH_CHECK(crow_indices.dim() == 1 && crow_indices.size(0) == grid_rows + 1, "crow_indices: expected ",
                  grid_rows + 1, " bounds");
  STD_TORCH_CHECK(col_indices.dim() == 1 && col_indices.size(0) == values.size(0), "col_indices: expected one a block");
  STD_TORCH_CHECK(static_cast<const int32_t*>(crow_indices.const_data_ptr())[grid_rows] == values.size(0),
                  "crow_indices: expected to end at the number of blocks");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == out_features && bias->scalar_type() == bias_type),
                  "bias: expected ", out_features, " numbers, in the dtype of the values or float32 for int8");
}

bool are(const Tensor& numbers, int64_t count, ScalarType type) {
  return numbers.dim() == 1 && numbers.size(0) == count && numbers.scalar_type() == type && numbers.is_contiguous();
}

// A problem that has only what happens before and after its product; `residual` becomes as the kernel reads it.
Problem with_surroundings(const Tensor& inputs, int64_t out_features, const std::optional<Tensor>& norm_weight,
                          const std::optional<Tensor>& norm_bias, double norm_epsilon,
                          std::optional<Tensor>& residual) {
  Problem problem{};
  const int64_t features = inputs.size(-1), tokens = inputs.numel() / std::max<int64_t>(features, 1);
  STD_TORCH_CHECK(norm_weight.has_value() == norm_bias.has_value(), "norm_weight, norm_bias: expected both or neither");
  if (norm_weight) {
    STD_TORCH_CHECK(are(*norm_weight, features, ScalarType::Float) && are(*norm_bias, features, ScalarType::Float),
                    "norm_weight, norm_bias: expected ", features, " float32 numbers each");
    problem.norm_weight = static_cast<const float*>(norm_weight->const_data_ptr());
    problem.norm_bias = static_cast<const float*>(norm_bias->const_data_ptr());
    problem.norm_epsilon = norm_epsilon;
  }
  if (residual) {
    STD_TORCH_CHECK(residual->numel() == tokens * out_features && residual->scalar_type() == inputs.scalar_type(),
                    "residual: expected the shape of the outputs in the dtype of the inputs");
    residual = made_contiguous(*residual);
    problem.residual = residual->const_data_ptr();
  }
  return problem;
}

// Runs a problem that lacks its tensors; the outputs. `inputs`, `values` and `bias` are as the kernel reads them.
Tensor run(Problem problem, const Kernel& kernel, const Tensor& inputs, const Tensor& values,
           const Tensor& crow_indices, const Tensor& col_indices, const std::optional<Tensor>& bias) {
  std::vector<int64_t> shape(inputs.sizes().begin(), inputs.sizes().end());
  problem.in_features = shape.back();
  shape.back() = problem.out_features;
  Tensor outputs = torch::stable::new_empty(inputs, shape);
  problem.inputs = inputs.const_data_ptr();
  problem.values = values.const_data_ptr();
  problem.crow_indices = static_cast<const int32_t*>(crow_indices.const_data_ptr());
  problem.col_indices = static_cast<const int32_t*>(col_indices.const_data_ptr());
  problem.bias = bias ? bias->const_data_ptr() : nullptr;
  problem.outputs = outputs.mutable_data_ptr();
  problem.tokens = outputs.numel() / std::max<int64_t>(problem.out_features, 1);
  problem.grid_rows = crow_indices.size(0) - 1;
  run<Threads>(problem, kernel);
  return outputs;
}

Tensor block_sparse_linear(Tensor inputs, Tensor values, Tensor crow_indices, Tensor col_indices,
                           std::optional<Tensor> bias, int64_t out_features, bool gelu,
                           std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, double norm_epsilon,
                           std::optional<Tensor> residual) {
  const ScalarType type = values.scalar_type();
  const Kernel* kernel = kernel_of(type);
  const bool has_pairs = values.dim() == 3 && values.size(2) % 2 == 0;
  if (!kernel || (type == ScalarType::BFloat16 && !has_pairs)) {
    return call("lpvit::masked_dense_linear", inputs, values, crow_indices, col_indices, bias, out_features, gelu,
                norm_weight, norm_bias, norm_epsilon, residual);
  }
  STD_TORCH_CHECK(inputs.dim() >= 1 && inputs.scalar_type() == type, "inputs: expected the dtype of the values");
  STD_TORCH_CHECK(values.dim() == 3, "values: expected (blocks, rows, columns)");
  check(values, crow_indices, col_indices, bias, type, out_features);
  if (bias) bias = made_contiguous(*bias);
  Problem problem = with_surroundings(inputs, out_features, norm_weight, norm_bias, norm_epsilon, residual);
  problem.out_features = out_features;
  problem.block_rows = values.size(1);
  problem.block_columns = values.size(2);
  problem.gelu = gelu;
  return run(problem, *kernel, made_contiguous(inputs), by_columns(values), crow_indices, col_indices, bias);
}

Tensor block_sparse_linear_int8(Tensor inputs, Tensor values, Tensor scales, Tensor row_sums, Tensor crow_indices,
                                Tensor col_indices, std::optional<Tensor> bias, int64_t out_features,
                                int64_t block_columns, bool gelu, std::optional<Tensor> norm_weight,
                                std::optional<Tensor> norm_bias, double norm_epsilon,
                                std::optional<Tensor> residual) {
  const ScalarType type = inputs.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::BFloat16) {
    return call("lpvit::masked_dense_linear_int8", inputs, values, scales, row_sums, crow_indices, col_indices, bias,
                out_features, block_columns, gelu, norm_weight, norm_bias, norm_epsilon, residual);
  }
  STD_TORCH_CHECK(inputs.dim() >= 1 && values.scalar_type() == ScalarType::Char, "values: expected int8");
  STD_TORCH_CHECK(values.dim() == 4 && values.size(3) == 4 && values.size(2) == (block_columns + 3) / 4,
                  "values: expected (blocks, rows, groups of columns, 4)");
  check(values, crow_indices, col_indices, bias, ScalarType::Float, out_features);
  STD_TORCH_CHECK(are(scales, out_features, ScalarType::Float) && are(row_sums, out_features, ScalarType::Int),
                  "scales, row_sums: expected ", out_features, " float32 and int32 numbers");
  if (bias) bias = made_contiguous(*bias);
  Problem problem = with_surroundings(inputs, out_features, norm_weight, norm_bias, norm_epsilon, residual);
  problem.out_features = out_features;
  problem.block_rows = values.size(1);
  problem.block_columns = block_columns;
  problem.gelu = gelu;
  problem.scales = static_cast<const float*>(scales.const_data_ptr());
  problem.row_sums = static_cast<const int32_t*>(row_sums.const_data_ptr());
  problem.bfloat16 = type == ScalarType::BFloat16;
  return run(problem, *chosen_kernels.for_int8, made_contiguous(inputs), by_columns(values), crow_indices, col_indices,
             bias);
}

Heads heads_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

// The outputs of a kernel whose problems are in the dtype of the queries.
Tensor attend(Tensor queries, Tensor keys, Tensor values, std::optional<Tensor> bias, std::optional<Tensor> mask,
              double scale, const AttentionKernel& kernel) {
  const ScalarType type = queries.scalar_type();
  STD_TORCH_CHECK(queries.dim() == 4 && scale > 0, "queries: expected (images, tokens, heads, features), scale above 0");
  for (Tensor* tensor : {&queries, &keys, &values}) {
    const bool fits = tensor->sizes().equals(queries.sizes()) && tensor->scalar_type() == type;
    STD_TORCH_CHECK(fits, "keys, values: expected the shape and dtype of the queries");
    if (tensor->stride(3) != 1) *tensor = torch::stable::contiguous(*tensor);
  }
  const int64_t images = queries.size(0), tokens = queries.size(1), heads = queries.size(2);
  const auto tables = [&](std::optional<Tensor>& tensor, bool fits) -> const void* {
    if (!tensor) return nullptr;
    STD_TORCH_CHECK(fits && tensor->size(1) == tokens && tensor->size(2) == tokens && tensor->scalar_type() == type,
                    "bias, mask: expected (heads, tokens, tokens), (masks, tokens, tokens) in the dtype of the queries");
    tensor = made_contiguous(*tensor);
    return tensor->const_data_ptr();
  };
  Attention problem{};
  problem.queries = heads_of(queries);
  problem.keys = heads_of(keys);
  problem.values = heads_of(values);
  problem.bias = tables(bias, bias && bias->dim() == 3 && bias->size(0) == heads);
  problem.masks = mask && mask->dim() == 3 ? mask->size(0) : 1;
  problem.mask = tables(mask, mask && mask->dim() == 3 && problem.masks > 0 && images % problem.masks == 0);
  problem.images = images;
  problem.tokens = tokens;
  problem.heads = heads;
  problem.features = queries.size(3);
  problem.scale = scale;
  problem.bfloat16 = type == ScalarType::BFloat16;
  Tensor outputs = torch::stable::new_empty(queries, {images, tokens, heads * problem.features});
  problem.outputs = outputs.mutable_data_ptr();
  if (outputs.numel() > 0) run<Threads>(problem, kernel);
  return outputs;
}

Tensor attention(Tensor queries, Tensor keys, Tensor values, std::optional<Tensor> bias, std::optional<Tensor> mask,
                 double scale) {
  const AttentionKernel* kernel = attention_of(queries.scalar_type());
  return kernel ? attend(queries, keys, values, bias, mask, scale, *kernel)
                : call("lpvit::dense_attention", queries, keys, values, bias, mask, scale);
}

Tensor attention_int8(Tensor queries, Tensor keys, Tensor values, std::optional<Tensor> bias,
                      std::optional<Tensor> mask, double scale) {
  const ScalarType type = queries.scalar_type();
  const bool is_taken = type == ScalarType::Float || type == ScalarType::BFloat16;
  const AttentionKernel* kernel = is_taken ? chosen_kernels.attention_of_int8 : nullptr;
  return kernel && queries.size(1) < kMostTokens ? attend(queries, keys, values, bias, mask, scale, *kernel)
                                                 : attention(queries, keys, values, bias, mask, scale);
}

}  // namespace
}  // namespace lpvit

STABLE_TORCH_LIBRARY_IMPL(lpvit, CPU, library) {
  library.impl("block_sparse_linear", TORCH_BOX(&lpvit::block_sparse_linear));
  library.impl("block_sparse_linear_int8", TORCH_BOX(&lpvit::block_sparse_linear_int8));
  library.impl("attention", TORCH_BOX(&lpvit::attention));
  library.impl("attention_int8", TORCH_BOX(&lpvit::attention_int8));
}

#define LPVIT_EXPORTED extern "C" __attribute__((visibility("default")))

// Makes the kernels of this name run from now on, the best ones for an empty name. Their name; null if the CPU has none.
LPVIT_EXPORTED const char* lpvit_choose_kernel(const char* name) {
  const std::optional<lpvit::Kernels> found = lpvit::kernels_named(name);
  if (!found) return nullptr;
  lpvit::chosen_kernels = *found;
  return found->name;
}

// The name of the kernel for bfloat16 that runs; null if there is none.
LPVIT_EXPORTED const char* lpvit_bfloat16_kernel() {
  const lpvit::Kernel* kernel = lpvit::chosen_kernels.for_bfloat16;
  return kernel ? kernel->name : nullptr;
}

// The name of the kernel for int8 that runs.
LPVIT_EXPORTED const char* lpvit_int8_kernel() { return lpvit::chosen_kernels.for_int8->name; }

// Whether that has attention too.
LPVIT_EXPORTED bool lpvit_has_int8_attention() { return lpvit::chosen_kernels.attention_of_int8; }
