// Attention of short sequences, apart from torch: what operator.cpp asks of attention.cpp.
//
// N = images, or windows of them; T = tokens; H = heads; d = features of a head; W = masks.
#pragma once

#include <cstdint>

namespace lpvit {

// Numbers (N, T, H, d) somewhere in memory, the features of a head contiguous; distances are in numbers.
struct Heads {
  const void* numbers;
  int64_t image, token, head;

  template <typename Number>
  const Number* of(int64_t image_index, int64_t head_index) const {
    return static_cast<const Number*>(numbers) + image_index * image + head_index * head;
  }
};

// outputs = softmax(scale * queries keys^T + bias + mask) values.
struct Attention {
  Heads queries, keys, values;
  const void* bias;  // (H, T, T) or null
  const void* mask;  // (W, T, T) or null; that of an image is its index modulo W
  void* outputs;     // (N, T, H, d)
  int64_t images, tokens, heads, features, masks;
  float scale;  // positive
  bool bfloat16;  // all of these, for a kernel in int8; else they are the kernel's
};

constexpr int64_t kMostTokens = 1 << 16;  // in int8: below it sums in int32 cannot overflow

// Some queries of a head of an image.
struct HeadPart {
  int64_t image, head, first_query, last_query;
};

struct AttentionKernel {
  int64_t tile_queries;  // that it works on at once
  int64_t (*scratch_bytes)(const Attention&);
  void (*run)(const Attention&, const HeadPart&, void* scratch);  // scratch: aligned to 64 bytes
};

extern const AttentionKernel avx512_attention, avx2_attention, sse_attention, neon_attention;
extern const AttentionKernel avx512_bf16_attention;  // for bfloat16
extern const AttentionKernel avx512_vnni_bf16_attention, avx512_vnni_attention, avx_vnni_attention;  // for int8
extern const AttentionKernel neon_dot_attention;

}  // namespace lpvit
