// The block-sparse layer in float32 as a custom operator of onnxruntime, `BlockSparseLinear` of the domain "lpvit", on
// one thread: what `inside_onnxruntime.py` compiles.
//
// M, I, O = tokens, input and output features; r, c = rows and columns of a block; R = rows of the grid;
// K = kept blocks.

#define ORT_API_MANUAL_INIT  // the functions come with the call, so that nothing of onnxruntime is linked
#include <onnxruntime_cxx_api.h>

#include "running.h"

namespace lpvit {
namespace {

struct Threads {
  static int64_t count() { return 1; }
  template <typename Function>
  static void run(int64_t, Function&& function) {
    function();
  }
};

class Layer {
 public:
  explicit Layer(Ort::ConstKernelInfo about)
      : out_features(about.GetAttribute<int64_t>("out_features")),
        block_rows(about.GetAttribute<int64_t>("block_rows")),
        block_columns(about.GetAttribute<int64_t>("block_columns")),
        kernel(*usable_kernels().front().for_float) {}

  void Compute(OrtKernelContext* given) const {
    Ort::KernelContext context(given);
    const auto input = [&](size_t index) { return context.GetInput(index); };
    std::vector<int64_t> shape = input(0).GetTensorTypeAndShapeInfo().GetShape();
    Problem problem{};
    problem.in_features = shape.back();
    shape.back() = out_features;
    auto outputs = context.GetOutput(0, shape);
    problem.inputs = input(0).GetTensorRawData();
    problem.values = input(1).GetTensorRawData();
    problem.crow_indices = input(2).GetTensorData<int32_t>();
    problem.col_indices = input(3).GetTensorData<int32_t>();
    problem.bias = input(4).GetTensorRawData();
    problem.outputs = outputs.GetTensorMutableRawData();
    problem.tokens = outputs.GetTensorTypeAndShapeInfo().GetElementCount() / out_features;
    problem.grid_rows = input(2).GetTensorTypeAndShapeInfo().GetElementCount() - 1;
    problem.out_features = out_features;
    problem.block_rows = block_rows;
    problem.block_columns = block_columns;
    run<Threads>(problem, kernel);
  }

 private:
  int64_t out_features, block_rows, block_columns;
  const Kernel& kernel;
};

// Inputs: those of the layer (M, I); values (K, c, r); crow_indices (R + 1,) and col_indices (K,), int32; bias (O,).
struct BlockSparseLinear : Ort::CustomOpBase<BlockSparseLinear, Layer> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* about) const {
    return new Layer(Ort::ConstKernelInfo(about));
  }
  const char* GetName() const { return "BlockSparseLinear"; }
  size_t GetInputTypeCount() const { return 5; }
  ONNXTensorElementDataType GetInputType(size_t index) const {
    const bool is_index = index == 2 || index == 3;
    return is_index ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
};

}  // namespace
}  // namespace lpvit

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* functions) {
  Ort::InitApi(functions->GetApi(ORT_API_VERSION));
  static Ort::CustomOpDomain domain("lpvit");
  static lpvit::BlockSparseLinear layer;
  static const bool is_added = (domain.Add(&layer), true);
  if (is_added) Ort::UnownedSessionOptions(options).Add(domain);
  return nullptr;
}
