// The block-sparse layer and attention as operations of OpenVINO, `BlockSparseLinear` and `FusedAttention` of the set
// "lpvit", apart from torch.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid; K = kept
// blocks. Of attention: N = images, or windows of them; T = tokens; H = heads; d = features of a head; W = masks.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "running.h"

namespace lpvit {
namespace {

// The threads that OpenVINO gave to a pass, for `run`.
struct Threads {
  static int64_t count() { return tbb::this_task_arena::max_concurrency(); }
  template <typename Function>
  static void run(int64_t times, Function&& function) {
    if (times == 1) return function();
    tbb::parallel_for(int64_t{0}, times, [&](int64_t) { function(); });
  }
};

// Those that LPVIT_INSTRUCTION_SET names, else the best.
const Kernels& kernels() {
  static const std::optional<Kernels> chosen = [] {
    const char* name = std::getenv("LPVIT_INSTRUCTION_SET");
    return kernels_named(name ? name : "");
  }();
  OPENVINO_ASSERT(chosen, "LPVIT_INSTRUCTION_SET: this CPU has no such one");
  return *chosen;
}

const Kernel* kernel_of(ov::element::Type values) {
  return values == ov::element::f32    ? kernels().for_float
         : values == ov::element::bf16 ? kernels().for_bfloat16
         : values == ov::element::i8   ? kernels().for_int8
                                       : nullptr;
}

// The kernel for numbers of a type, by integers where it may be; null if there is none.
const AttentionKernel* attention_of(ov::element::Type numbers, bool int8, int64_t tokens) {
  if (int8 && kernels().attention_of_int8 && tokens < kMostTokens) return kernels().attention_of_int8;
  return numbers == ov::element::f32    ? kernels().attention_of_float
         : numbers == ov::element::bf16 ? kernels().attention_of_bfloat16
                                        : nullptr;
}

template <typename From, typename To>
void copy_numbers(const ov::Tensor& from, ov::Tensor& to) {
  std::copy_n(from.data<From>(), from.get_size(), to.data<To>());
}

}  // namespace

// Inputs: those of the layer (..., I); values as `Problem` has them; crow_indices (R + 1,) and col_indices (K,), int32;
// if `biased`, bias (O,); for int8 values scales (O,), float32, and row_sums (O,), int32; if `normalises`, weight and
// bias of LayerNorm, (I,), float32; if `adds`, a residual (..., O).
class BlockSparseLinear : public ov::op::Op {
 public:
  OPENVINO_OP("BlockSparseLinear", "lpvit");

  BlockSparseLinear() = default;

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    auto clone = std::make_shared<BlockSparseLinear>(*this);
    clone->set_arguments(inputs);
    clone->validate_and_infer_types();
    return clone;
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("out_features", out_features);
    visitor.on_attribute("block_rows", block_rows);
    visitor.on_attribute("block_columns", block_columns);
    visitor.on_attribute("gelu", gelu);
    visitor.on_attribute("biased", biased);
    visitor.on_attribute("normalises", normalises);
    visitor.on_attribute("norm_epsilon", norm_epsilon);
    visitor.on_attribute("adds", adds);
    return true;
  }

  void validate_and_infer_types() override {
    ov::PartialShape shape = get_input_partial_shape(0);
    if (shape.rank().is_static()) shape[shape.rank().get_length() - 1] = out_features;
    set_output_type(0, get_input_element_type(0), shape);
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Tensor &tokens = inputs[0], &values = inputs[1];
    const bool is_int8 = values.get_element_type() == ov::element::i8;
    const Kernel* kernel = kernel_of(values.get_element_type());
    OPENVINO_ASSERT(kernel, "no kernel for ", values.get_element_type(), " on this CPU");
    OPENVINO_ASSERT(is_int8 || tokens.get_element_type() == values.get_element_type(), "inputs in ",
                    tokens.get_element_type(), " for values in ", values.get_element_type());
    OPENVINO_ASSERT(values.get_element_type() != ov::element::bf16 || block_columns % 2 == 0, "blocks of an odd width");
    ov::Shape shape = tokens.get_shape();
    Problem problem{};
    problem.in_features = shape.back();
    shape.back() = out_features;
    outputs[0].set_shape(shape);
    size_t next = 2;
    const auto following = [&] { return static_cast<const void*>(inputs[next++].data()); };
    problem.inputs = tokens.data();
    problem.values = values.data();
    problem.grid_rows = inputs[next].get_size() - 1;
    problem.crow_indices = static_cast<const int32_t*>(following());
    problem.col_indices = static_cast<const int32_t*>(following());
    OPENVINO_ASSERT(problem.grid_rows == (out_features + block_rows - 1) / block_rows &&
                        problem.crow_indices[problem.grid_rows] == static_cast<int64_t>(values.get_shape()[0]),
                    "indices that are not of these values");
    if (biased) problem.bias = following();
    if (is_int8) {
      problem.scales = static_cast<const float*>(following());
      problem.row_sums = static_cast<const int32_t*>(following());
    }
    if (normalises) {
      problem.norm_weight = static_cast<const float*>(following());
      problem.norm_bias = static_cast<const float*>(following());
    }
    if (adds) problem.residual = following();
    problem.norm_epsilon = norm_epsilon;
    problem.outputs = outputs[0].data();
    problem.out_features = out_features;
    problem.tokens = outputs[0].get_size() / out_features;
    problem.block_rows = block_rows;
    problem.block_columns = block_columns;
    problem.gelu = gelu;
    problem.bfloat16 = tokens.get_element_type() == ov::element::bf16;
    run<Threads>(problem, *kernel);
    return true;
  }

 private:
  int64_t out_features = 1, block_rows = 1, block_columns = 1;
  bool gelu = false, biased = false, normalises = false, adds = false;
  float norm_epsilon = 0;
};

// Inputs, all of one type: queries, keys and values (N, T, H, d), or one (N, T, 3 H d) where they are adjacent; if
// `biased`, a bias (H, T, T); if `masked`, masks (W, T, T). Outputs: (N, T, H d).
class FusedAttention : public ov::op::Op {
 public:
  OPENVINO_OP("FusedAttention", "lpvit");

  FusedAttention() = default;

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    auto clone = std::make_shared<FusedAttention>(*this);
    clone->set_arguments(inputs);
    clone->validate_and_infer_types();
    return clone;
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("heads", heads);
    visitor.on_attribute("scale", scale);
    visitor.on_attribute("int8", int8);
    visitor.on_attribute("biased", biased);
    visitor.on_attribute("masked", masked);
    return true;
  }

  void validate_and_infer_types() override {
    const ov::PartialShape shape = get_input_partial_shape(0);
    OPENVINO_ASSERT(shape.rank().is_static() && (shape.size() == 3 || shape.size() == 4), "attention of ", shape);
    const ov::Dimension features = shape.size() == 3 ? shape[2] / 3 : shape[3] * heads;
    set_output_type(0, get_input_element_type(0), {shape[0], shape[1], features});
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::element::Type type = inputs[0].get_element_type();
    const ov::Shape& shape = inputs[0].get_shape();
    outputs[0].set_shape({shape[0], shape[1], shape.size() == 3 ? shape[2] / 3 : shape[2] * shape[3]});
    if (const AttentionKernel* kernel = attention_of(type, int8, shape[1])) {
      attend(outputs[0], inputs, *kernel);
      return true;
    }
    OPENVINO_ASSERT(type == ov::element::bf16, "no attention in ", type);
    ov::TensorVector wide;  // in float32 on a CPU that has no kernel for bfloat16
    for (const ov::Tensor& numbers : inputs) {
      wide.emplace_back(ov::element::f32, numbers.get_shape());
      copy_numbers<ov::bfloat16, float>(numbers, wide.back());
    }
    ov::Tensor wide_outputs(ov::element::f32, outputs[0].get_shape());
    attend(wide_outputs, wide, *kernels().attention_of_float);
    copy_numbers<float, ov::bfloat16>(wide_outputs, outputs[0]);
    return true;
  }

 private:
  void attend(ov::Tensor& outputs, const ov::TensorVector& inputs, const AttentionKernel& kernel) const {
    const ov::Shape& shape = inputs[0].get_shape();
    const bool is_packed = shape.size() == 3;
    const int64_t width = outputs.get_shape()[2], bytes = width * outputs.get_element_type().size();  // of a token
    Attention problem{};
    problem.images = shape[0];
    problem.tokens = shape[1];
    problem.heads = heads;
    problem.features = width / heads;
    problem.masks = 1;
    size_t next = is_packed ? 1 : 3;
    const auto part = [&](size_t index) -> Heads {
      const ov::Tensor& numbers = inputs[is_packed ? 0 : index];
      OPENVINO_ASSERT(numbers.get_shape() == shape, "keys or values of another shape than queries");
      const char* first = static_cast<const char*>(numbers.data()) + (is_packed ? index * bytes : 0);
      const int64_t of_token = is_packed ? 3 * width : width;
      return {first, problem.tokens * of_token, of_token, problem.features};
    };
    const auto table = [&](const ov::Tensor& numbers, int64_t count) -> const void* {
      const bool fits = count > 0 && numbers.get_size() == size_t(count * problem.tokens * problem.tokens);
      OPENVINO_ASSERT(fits, "a bias or masks for other heads or tokens");
      return numbers.data();
    };
    OPENVINO_ASSERT(width % heads == 0 && (!is_packed || int64_t(shape[2]) == 3 * width), "not ", heads, " heads");
    problem.queries = part(0);
    problem.keys = part(1);
    problem.values = part(2);
    if (biased) problem.bias = table(inputs[next++], heads);
    if (masked) {
      problem.masks = inputs[next].get_shape()[0];
      problem.mask = table(inputs[next], problem.masks);
      OPENVINO_ASSERT(problem.images % problem.masks == 0, problem.masks, " masks for ", problem.images, " images");
    }
    problem.outputs = outputs.data();
    problem.scale = scale;
    problem.bfloat16 = outputs.get_element_type() == ov::element::bf16;
    if (outputs.get_size() > 0) run<Threads>(problem, kernel);
  }

  int64_t heads = 1;
  float scale = 1;
  bool int8 = false, biased = false, masked = false;
};

}  // namespace lpvit

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<lpvit::BlockSparseLinear>>(),
    std::make_shared<ov::OpExtension<lpvit::FusedAttention>>(),
}));
