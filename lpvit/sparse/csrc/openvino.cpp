// The block-sparse layer as an operation of OpenVINO, `BlockSparseLinear` of the set "lpvit", apart from torch.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid;
// K = kept blocks.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/op.hpp>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

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

const Kernels& kernels() {
  static const Kernels best = usable_kernels().front();
  return best;
}

const Kernel* kernel_of(ov::element::Type values) {
  return values == ov::element::f32    ? kernels().for_float
         : values == ov::element::bf16 ? kernels().for_bfloat16
         : values == ov::element::i8   ? kernels().for_int8
                                       : nullptr;
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

}  // namespace lpvit

OPENVINO_CREATE_EXTENSIONS(
    std::vector<ov::Extension::Ptr>({std::make_shared<ov::OpExtension<lpvit::BlockSparseLinear>>()}));
