// Which kernels this CPU can run, and how threads share their work, apart from torch: what operator.cpp and openvino.cpp
// have in common.
//
// M = tokens; r = rows of a block; R = rows of the grid.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "attention.h"
#include "kernel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#else
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lpvit {
namespace {

// The kernels of an instruction set; null where it has none.
struct Kernels {
  const Kernel* for_float;
  const Kernel* for_bfloat16;
  const Kernel* for_int8;
  const AttentionKernel *attention_of_float, *attention_of_bfloat16, *attention_of_int8;
  const char* name = for_float->name;
};

#if defined(__x86_64__)

bool has_avx_vnni() {
  unsigned a = 0, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}

// Those that this CPU can run, best first.
std::vector<Kernels> usable_kernels() {
  std::vector<Kernels> kernels;
  const bool has_fma = __builtin_cpu_supports("fma"), has_avx2 = has_fma && __builtin_cpu_supports("avx2");
  const bool has_vectors_of_any_length = __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
  const bool has_bfloat16 = has_vectors_of_any_length && __builtin_cpu_supports("avx512bf16");
  const bool has_vnni = has_vectors_of_any_length && __builtin_cpu_supports("avx512vnni");
  if (has_avx2 && __builtin_cpu_supports("avx512f")) {
    kernels.push_back({&avx512_kernel, nullptr, &avx2_int8_kernel, &avx512_attention, nullptr, nullptr});
    if (has_bfloat16) {
      kernels.back().for_bfloat16 = &avx512_bf16_kernel;
      kernels.back().attention_of_bfloat16 = &avx512_bf16_attention;
    }
    if (has_vnni) {
      kernels.back().for_int8 = has_bfloat16 ? &avx512_vnni_bf16_kernel : &avx512_vnni_kernel;
      kernels.back().attention_of_int8 = has_bfloat16 ? &avx512_vnni_bf16_attention : &avx512_vnni_attention;
    }
  }
  if (has_avx2 && has_avx_vnni()) {
    kernels.push_back(
        {&avx2_kernel, nullptr, &avx_vnni_kernel, &avx2_attention, nullptr, &avx_vnni_attention, "avx_vnni"});
  }
  if (has_avx2) kernels.push_back({&avx2_kernel, nullptr, &avx2_int8_kernel, &avx2_attention, nullptr, nullptr});
  kernels.push_back({&sse_kernel, nullptr, &sse_int8_kernel, &sse_attention, nullptr, nullptr});
  return kernels;
}

#else

std::vector<Kernels> usable_kernels() {
  std::vector<Kernels> kernels{{&neon_kernel, nullptr, &neon_int8_kernel, &neon_attention, nullptr, nullptr}};
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) {
    kernels.front().for_int8 = &neon_dot_kernel;
    kernels.front().attention_of_int8 = &neon_dot_attention;
  }
  return kernels;
}

#endif

// Those of a name; the best for an empty one.
std::optional<Kernels> kernels_named(std::string_view name) {
  for (const Kernels& kernels : usable_kernels()) {
    if (name.empty() || name == kernels.name) return kernels;
  }
  return std::nullopt;
}

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

// Calls a function with 0, 1, ... count - 1 on all threads, each of which takes the next when it is done with one.
// `Threads` says how many there are, and runs a function that many times or less, in parallel.
template <typename Threads, typename Function>
void share_out(int64_t count, Function&& function) {
  std::atomic<int64_t> next{0};
  Threads::run(std::min(Threads::count(), count), [&] {
    for (int64_t index; (index = next.fetch_add(1)) < count;) function(index);
  });
}

template <typename Threads>
void run(const Problem& problem, const Kernel& kernel) {
  const Parts parts(problem, kernel, Threads::count());
  share_out<Threads>(parts.count(), [&](int64_t index) {
    const Part part = parts.part(index);
    kernel.run(problem, part,
               scratch_of_thread((part.last_token - part.first_token) * kernel.scratch_bytes(problem)));
  });
}

// Heads one after the other; cut into parts where there are few of them for the threads, since each part packs the keys
// and values of its head again.
template <typename Threads>
void run(const Attention& problem, const AttentionKernel& kernel) {
  const int64_t threads = Threads::count(), heads = problem.images * problem.heads;
  const int64_t most = (problem.tokens + kernel.tile_queries - 1) / kernel.tile_queries;
  const int64_t parts = threads == 1 ? 1 : std::clamp<int64_t>(2 * threads / std::max<int64_t>(heads, 1), 1, most);
  share_out<Threads>(heads * parts, [&](int64_t index) {
    const int64_t head = index / parts, part = index % parts;
    const HeadPart of_head{head / problem.heads, head % problem.heads, problem.tokens * part / parts,
                           problem.tokens * (part + 1) / parts};
    kernel.run(problem, of_head, scratch_of_thread(kernel.scratch_bytes(problem)));
  });
}

}  // namespace
}  // namespace lpvit
