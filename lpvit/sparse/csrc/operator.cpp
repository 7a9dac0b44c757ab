// lpvit::block_sparse_linear on the CPU, through torch's stable ABI: checks, choice of kernel, threads.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "kernel.h"

namespace lpvit {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels of an instruction set; null where it has none for bfloat16.
struct Kernels {
  const Kernel* for_float;
  const Kernel* for_bfloat16 = nullptr;

  const Kernel* of(ScalarType type) const {
    return type == ScalarType::Float ? for_float : type == ScalarType::BFloat16 ? for_bfloat16 : nullptr;
  }
};

// Those that this CPU can run, best first.
std::vector<Kernels> usable_kernels() {
#if defined(__x86_64__)
  std::vector<Kernels> kernels;
  const bool has_fma = __builtin_cpu_supports("fma");
  const bool has_bfloat16 = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
  if (has_fma && __builtin_cpu_supports("avx512f")) {
    kernels.push_back({&avx512_kernel, has_bfloat16 ? &avx512_bf16_kernel : nullptr});
  }
  if (has_fma && __builtin_cpu_supports("avx2")) kernels.push_back({&avx2_kernel});
  kernels.push_back({&sse_kernel});
  return kernels;
#else
  return {{&neon_kernel}};
#endif
}

Kernels chosen_kernels = usable_kernels().front();

// Panels that a thread keeps from call to call.
void* scratch_of_thread(int64_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = (bytes + 63) / 64 * 64;
    memory.reset(std::aligned_alloc(64, size));
  }
  return memory.get();
}

// A copy only where one is needed: even a call that does nothing costs time, through torch's dispatcher.
Tensor made_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The values as the kernel reads them, column by column; a copy where they are not laid out so.
Tensor by_columns(const Tensor& values) {
  const int64_t rows = values.size(1), columns = values.size(2);
  const bool are_so = values.stride(1) == 1 && values.stride(2) == rows && values.stride(0) == rows * columns;
  return are_so ? values : torch::stable::contiguous(torch::stable::transpose(values, 1, 2));
}

constexpr int64_t kPartTokens = 112;  // their inputs and the weights that meet them fit a common L2 cache of 1 MiB

// Cuts the output into parts that threads take one after the other.
struct Parts {
  Parts(const Problem& p, const Kernel& kernel, int64_t threads) : p(p) {
    token_parts = (p.tokens + kPartTokens - 1) / kPartTokens;
    if (threads > 1) {
      const int64_t most = std::max<int64_t>(p.tokens / (3 * kernel.tile_tokens), 1);
      token_parts = std::max(token_parts, std::min(most, 4 * threads));
      token_parts = std::min((token_parts + threads - 1) / threads * threads, std::max<int64_t>(p.tokens, 1));
      if (p.tokens < threads * kernel.tile_tokens) {
        token_parts = 1;
        row_parts = std::min(p.grid_rows, threads);
      }
    }
  }

  int64_t count() const { return token_parts * row_parts; }

  Part part(int64_t index) const {
    const int64_t token = index / row_parts, row = index % row_parts;
    return {p.tokens * token / token_parts, p.tokens * (token + 1) / token_parts, p.grid_rows * row / row_parts,
            p.grid_rows * (row + 1) / row_parts};
  }

  const Problem& p;
  int64_t token_parts = 1, row_parts = 1;
};

void run(const Problem& problem, const Kernel& kernel) {
  const int64_t threads = torch::stable::get_num_threads();
  const Parts parts(problem, kernel, threads);
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min(threads, parts.count());
  torch::stable::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t index; (index = next.fetch_add(1)) < parts.count();) {
      const Part part = parts.part(index);
      kernel.run(problem, part,
                 scratch_of_thread((part.last_token - part.first_token) * kernel.scratch_bytes(problem)));
    }
  });
}

// What runs where there is no kernel.
Tensor masked_dense_linear(const Tensor& inputs, const Tensor& values, const Tensor& crow_indices,
                           const Tensor& col_indices, const std::optional<Tensor>& bias, int64_t out_features,
                           bool gelu) {
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack{from(inputs), from(values),       from(crow_indices), from(col_indices),
                                    from(bias),   from(out_features), from(gelu)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("lpvit::masked_dense_linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void check(const Tensor& inputs, const Tensor& values, const Tensor& crow_indices, const Tensor& col_indices,
           const std::optional<Tensor>& bias, int64_t out_features) {
  const auto is_int = [](const Tensor& t) { return t.scalar_type() == ScalarType::Int && t.is_contiguous(); };
  const ScalarType type = values.scalar_type();
  STD_TORCH_CHECK(inputs.dim() >= 1 && inputs.scalar_type() == type, "inputs: expected the dtype of the values");
  STD_TORCH_CHECK(values.dim() == 3, "values: expected (blocks, rows, columns)");
  STD_TORCH_CHECK(is_int(crow_indices) && is_int(col_indices), "indices: expected contiguous int32");
  const int64_t grid_rows = (out_features + values.size(1) - 1) / values.size(1);
  STD_TORCH_CHECK(crow_indices.dim() == 1 && crow_indices.size(0) == grid_rows + 1, "crow_indices: expected ",
                  grid_rows + 1, " bounds");
  STD_TORCH_CHECK(col_indices.dim() == 1 && col_indices.size(0) == values.size(0), "col_indices: expected one a block");
  STD_TORCH_CHECK(static_cast<const int32_t*>(crow_indices.const_data_ptr())[grid_rows] == values.size(0),
                  "crow_indices: expected to end at the number of blocks");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == out_features && bias->scalar_type() == type),
                  "bias: expected the dtype of the values and ", out_features, " numbers");
}

Tensor block_sparse_linear(Tensor inputs, Tensor values, Tensor crow_indices, Tensor col_indices,
                           std::optional<Tensor> bias, int64_t out_features, bool gelu) {
  const Kernel* kernel = chosen_kernels.of(values.scalar_type());
  const bool has_pairs = values.dim() == 3 && values.size(2) % 2 == 0;
  if (!kernel || (values.scalar_type() == ScalarType::BFloat16 && !has_pairs)) {
    return masked_dense_linear(inputs, values, crow_indices, col_indices, bias, out_features, gelu);
  }
  check(inputs, values, crow_indices, col_indices, bias, out_features);
  inputs = made_contiguous(inputs);
  if (bias) bias = made_contiguous(*bias);
  const Tensor weights = by_columns(values);

  std::vector<int64_t> shape(inputs.sizes().begin(), inputs.sizes().end());
  const int64_t in_features = shape.back();
  shape.back() = out_features;
  Tensor outputs = torch::stable::new_empty(inputs, shape);

  Problem problem{};
  problem.inputs = inputs.const_data_ptr();
  problem.values = weights.const_data_ptr();
  problem.crow_indices = static_cast<const int32_t*>(crow_indices.const_data_ptr());
  problem.col_indices = static_cast<const int32_t*>(col_indices.const_data_ptr());
  problem.bias = bias ? bias->const_data_ptr() : nullptr;
  problem.outputs = outputs.mutable_data_ptr();
  problem.tokens = outputs.numel() / std::max<int64_t>(out_features, 1);
  problem.in_features = in_features;
  problem.out_features = out_features;
  problem.block_rows = values.size(1);
  problem.block_columns = values.size(2);
  problem.grid_rows = crow_indices.size(0) - 1;
  problem.gelu = gelu;
  run(problem, *kernel);
  return outputs;
}

}  // namespace
}  // namespace lpvit

STABLE_TORCH_LIBRARY_IMPL(lpvit, CPU, library) {
  library.impl("block_sparse_linear", TORCH_BOX(&lpvit::block_sparse_linear));
}

// Makes the kernels of this name run from now on, the best ones for an empty name. Their name; null if the CPU has none.
extern "C" __attribute__((visibility("default"))) const char* lpvit_choose_kernel(const char* name) {
  for (const lpvit::Kernels& kernels : lpvit::usable_kernels()) {
    if (*name == '\0' || std::strcmp(name, kernels.for_float->name) == 0) {
      lpvit::chosen_kernels = kernels;
      return kernels.for_float->name;
    }
  }
  return nullptr;
}

// The name of the kernel for bfloat16 that runs; null if there is none.
extern "C" __attribute__((visibility("default"))) const char* lpvit_bfloat16_kernel() {
  const lpvit::Kernel* kernel = lpvit::chosen_kernels.for_bfloat16;
  return kernel ? kernel->name : nullptr;
}
