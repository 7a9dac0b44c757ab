"""Settings of benchmarks."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lpvit.allocation.settings import LATENCY_BATCH_SIZE
from lpvit.precisions import FLOATING, PRECISIONS
from lpvit.settings import Section

# In int8: OpenVINO by NNCF's post-training quantisation, with all other operations in float32 (or bfloat16); ONNX
# Runtime by dynamic quantisation, or with static scales.
ENGINES = (
    *(f"openvino_{name}" for name, row in PRECISIONS.items() if "openvino" in row.engines),
    "openvino_int8_bfloat16",
    *(f"onnxruntime_{name}" for name, row in PRECISIONS.items() if "onnxruntime" in row.engines),
    "onnxruntime_int8_static",
)


class Benchmark(Section):
    """How speed and energy are measured. Changes rerun measurements; pruning only under a `latency` budget."""

    configurations: tuple[Literal["dense", "masked", "sparse", "dense_compiled", "sparse_compiled"], ...] = Field(
        ("dense", "masked", "sparse"),
        description="interleaved configurations: the dense model, the pruned one with zeros (not in int8), the pruned "
        "one block-sparse; `_compiled` by torch.compile, which takes minutes on a small machine",
    )
    batch_sizes: tuple[Annotated[int, Field(gt=0)] | Literal["largest"], ...] = Field(
        (1, 32, "largest"),
        min_length=1,
        description="images per pass; `largest` is the largest power of two that fits on a GPU, up to 1024, and 128 on "
        "a CPU",
    )
    dtype: Literal[FLOATING] = Field(  # type: ignore[valid-type]
        "float32", description="type of weights and activations"
    )
    seconds: float = Field(3, gt=0, description="time per configuration and batch size")
    energy_seconds: float = Field(
        10,
        gt=0,
        description="length of an energy measurement; three per configuration, at the last batch size",
    )
    layer_batch_size: int = Field(
        LATENCY_BATCH_SIZE, gt=0, description="images per pass for the milliseconds of a budget in `latency`"
    )

    engines: tuple[Literal[ENGINES], ...] = Field(  # type: ignore[valid-type]
        (),
        description="other engines that run the dense and the masked model on the CPU, as further configurations "
        "(extra `engines`); all are then compared with the fastest dense configuration",
    )
    engine_images: int = Field(
        2000, gt=0, description="validation images, spread over the split, for the accuracy of engines in int8"
    )

    @model_validator(mode="after")
    def _dense_is_timed(self) -> "Benchmark":
        if "dense" not in self.configurations or len(set(self.configurations)) < len(self.configurations):
            raise ValueError("configurations: list 'dense', the baseline of the others, and each configuration once")
        if not any("int8" in engine for engine in self.engines):
            self.without("engine_images", because="is for 'engines' in int8")
        return self
