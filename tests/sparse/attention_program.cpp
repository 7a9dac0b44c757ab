// The arithmetic of an attention kernel as a program, for a processor that only an emulator has and for sanitizers: a
// problem from standard input, its outputs to standard output. Compiled with LPVIT_ISA, as attention.cpp, in float32.
//
// Input: int64 N, T, H, d, W, bias (0 or 1); then queries, keys and values side by side (N, T, 3, H, d), bias, masks.

#include <cmath>
#include <utility>

#include "attention.h"
#include "program.h"

#define JOIN(name) name##_attention
#define ATTENTION_OF(name) JOIN(name)

int main() {
  const lpvit::AttentionKernel& kernel = lpvit::ATTENTION_OF(LPVIT_ISA);
  const auto sizes = take<int64_t>(6);
  const int64_t images = sizes[0], tokens = sizes[1], heads = sizes[2], features = sizes[3], width = heads * features;
  const auto packed = take<float>(images * tokens * 3 * width);
  const auto bias = take<float>(sizes[5] * heads * tokens * tokens), mask = take<float>(sizes[4] * tokens * tokens);
  std::vector<float> outputs(images * tokens * width);
  const auto part = [&](int64_t index) {
    return lpvit::Heads{packed.data() + index * width, tokens * 3 * width, 3 * width, features};
  };
  lpvit::Attention problem{part(0), part(1), part(2)};
  problem.bias = bias.empty() ? nullptr : bias.data();
  problem.mask = mask.empty() ? nullptr : mask.data();
  problem.masks = mask.empty() ? 1 : sizes[4];
  problem.outputs = outputs.data();
  problem.images = images;
  problem.tokens = tokens;
  problem.heads = heads;
  problem.features = features;
  problem.scale = 1 / std::sqrt(static_cast<float>(features));
  void* scratch = std::aligned_alloc(64, (kernel.scratch_bytes(problem) + 63) / 64 * 64);
  for (int64_t head = 0; head < images * heads; ++head) {
    for (const auto& [first, last] : {std::pair{int64_t{0}, tokens / 3}, std::pair{tokens / 3, tokens}}) {
      kernel.run(problem, {head / heads, head % heads, first, last}, scratch);
    }
  }
  std::fwrite(outputs.data(), sizeof(float), outputs.size(), stdout);
  std::free(scratch);
}
