"""Schemas of the pipeline's tables.

The reference of artifacts in the documentation is generated from them.
"""

import pyarrow as pa

from lpvit.moved import forwards
from lpvit.store.tables import Column, Schema

__getattr__ = forwards(__name__)

_LAYER = Column("layer", pa.string(), "", "name of the layer in the timm model")
_STAGE = Column("stage", pa.string(), "", "dense, pruned, finetuned, quantised or finetuned_quantised")

IMAGES = Schema(
    "images.parquet",
    "image of the dataset",
    (
        Column("split", pa.string(), "", "train or validation"),
        Column("path", pa.string(), "", "file below the dataset's root, or place in a shard; digits/<n> for `digits`"),
        Column("label", pa.int64(), "", "class number, in the dataset's `class_order`; 0 without classes"),
        Column("class_name", pa.string(), "", "name of the class; empty without classes"),
        Column("problem", pa.string(), "", "why the image cannot be decoded; null if it can", nullable=True),
    ),
)

SAMPLES = Schema(
    "samples.parquet",
    "calibration image",
    (
        Column("path", pa.string(), "", "file below the dataset's root, or place in a shard; digits/<n> for `digits`"),
        Column("label", pa.int64(), "", "class number"),
    ),
)

COSTS = Schema(
    "costs.parquet",
    "layer that multiplies by a weight matrix, in order of execution",
    (
        _LAYER,
        Column(
            "role", pa.string(), "", "last part of the name: qkv, proj, fc1, fc2, patch_embed, head, reduction, ..."
        ),
        Column("out_features", pa.int64(), "", "rows of the weight matrix"),
        Column("in_features", pa.int64(), "", "columns of the weight matrix"),
        Column("tokens", pa.int64(), "1/image", "vectors that the layer multiplies for an image"),
        Column("macs", pa.int64(), "MAC/image", "multiply-accumulates: tokens * out_features * in_features"),
        Column("parameters", pa.int64(), "", "weights and biases"),
    ),
)

LATENCY = Schema(
    "latency.parquet",
    "layer timed on a machine, at a block shape and a sparsity",
    (
        Column("out_features", pa.int64(), "", "rows of the weight matrix"),
        Column("in_features", pa.int64(), "", "columns of the weight matrix"),
        Column("tokens", pa.int64(), "1/image", "vectors that the layer multiplies for an image"),
        Column("block_rows", pa.int64(), "", "rows of a block; 0 for low-rank factors"),
        Column("block_columns", pa.int64(), "", "columns of a block; 0 for low-rank factors"),
        Column("sparsity", pa.float64(), "", "share of the weights pruned; 0 is the dense layer, without blocks"),
        Column("milliseconds", pa.float64(), "ms/image", "time of the layer"),
    ),
)

PLAN = Schema(
    "plan.parquet",
    "experiment, as checked before anything runs",
    (
        Column("experiment", pa.string(), "", "name in the config"),
        Column("classes", pa.int64(), "", "classes of the dataset"),
        Column("dense_macs", pa.int64(), "MAC/image", "MACs of the dense model in linear layers"),
        Column("prunable_macs", pa.int64(), "MAC/image", "part of dense_macs in prunable layers"),
        Column("least_macs", pa.int64(), "MAC/image", "the least MACs that any budget can ask for"),
        Column(
            "target",
            pa.float64(),
            "",
            "the budget: share kept, sparsity, points lost or ms; of two the first",
        ),
    ),
)

BLOCKS = Schema(
    "blocks.parquet",
    "piece that a prunable layer can lose: a block, or the step from one option to the next smaller one",
    (
        _LAYER,
        Column("structure", pa.string(), "", "of the layer without the piece: blocks or factors"),
        Column("row", pa.int32(), "", "row of the block in the grid of the layer; of a step 0"),
        Column("column", pa.int32(), "", "column of the block in the grid of the layer; of a step its number"),
        Column("weights", pa.int32(), "", "weights in the piece (fewer in blocks at ragged edges)"),
        Column("bytes", pa.int64(), "B", "that it takes in a saved model in float32 (blocks at ragged edges: padded)"),
        Column("saliency", pa.float64(), "", "score of the block; the lowest are pruned first"),
        Column("squared_norm", pa.float64(), "", "sum of the squared weights"),
    ),
)

CURVES = Schema(
    "curves.parquet",
    "point of the rate-distortion curve of a layer, by rising sparsity",
    (
        _LAYER,
        Column("sparsity", pa.float64(), "", "requested share of pruned blocks, 0 to 1"),
        Column("blocks_pruned", pa.int64(), "", "blocks pruned: the least salient of the layer"),
        Column("weights_pruned", pa.int64(), "", "weights in the pruned blocks"),
        Column(
            "distortion",
            pa.float64(),
            "logit^2/image",
            "change of the output that pruning them causes; `taylor` is not calibrated to this unit",
        ),
    ),
)

FREEDOMS = Schema(
    "freedoms.parquet",
    "freedom of aligned bases that the pruning asks for",
    (
        Column("freedom", pa.string(), "", "`centre`, `residual`, `values`, `queries` or `hidden`"),
        Column("used", pa.bool_(), "", "whether it is used anywhere in the model"),
        Column("places", pa.int64(), "", "places where it is used"),
        Column("candidates", pa.int64(), "", "places where it might have been used"),
        Column("reason", pa.string(), "", "why it is not used at the others; empty if it is"),
    ),
)

INTERACTIONS = Schema(
    "interactions.parquet",
    "ordered pair of prunable layers, under the masks of an experiment",
    (
        _LAYER,
        Column("other", pa.string(), "", "the other layer; the same one for its own distortion"),
        Column(
            "distortion",
            pa.float64(),
            "logit^2/image",
            "mean product of the logit changes by pruning each of the two layers; all pairs sum to the model's "
            "distortion, to first order in the weights and before reconstruction",
        ),
    ),
)

ALLOCATION = Schema(
    "allocation.parquet",
    "prunable layer",
    (
        _LAYER,
        Column("blocks", pa.int64(), "", "blocks of the layer"),
        Column("blocks_kept", pa.int64(), "", "kept blocks: the most salient of the layer"),
        Column("keep_ratio", pa.float64(), "", "blocks_kept / blocks"),
        Column("macs_dense", pa.int64(), "MAC/image", "MACs of the dense layer"),
        Column("macs_kept", pa.int64(), "MAC/image", "MACs of the kept blocks"),
        Column(
            "budget",
            pa.string(),
            "",
            "its key, such as macs or bytes; like all columns below, same in all rows",
        ),
        Column("target", pa.float64(), "", "the budget: share kept of the dense model's, or sparsity"),
        Column("achieved", pa.float64(), "", "value that the allocation reaches"),
        Column("second_budget", pa.string(), "", "the other of two budgets; null without one", nullable=True),
        Column("second_target", pa.float64(), "", "its target", nullable=True),
        Column("second_achieved", pa.float64(), "", "value that the allocation reaches", nullable=True),
    ),
)

FRONTIER = Schema(
    "frontier.parquet",
    "allocation on the frontier of two budgets, by distortion and weight",
    (
        Column("level", pa.float64(), "", "allowed distortion, relative to the allocation that meets both budgets"),
        Column(
            "weight", pa.float64(), "", "weight of the first budget in the combined cost; 1 - weight for the second"
        ),
        Column("distortion", pa.float64(), "logit^2/image", "sum of the layers' curves"),
        Column("first", pa.float64(), "", "value reached for the first budget: share kept, or sparsity"),
        Column("second", pa.float64(), "", "value reached for the second budget"),
    ),
)

OUTCOMES = Schema(
    "outcomes.parquet",
    "compressed model that was tried for a budget by its outcome",
    (
        Column("outcome", pa.string(), "", "points_lost or milliseconds"),
        Column("target", pa.float64(), "", "of the budget"),
        Column("macs", pa.float64(), "", "share of the dense model's MACs that it was asked to keep"),
        Column("value", pa.float64(), "", "points of top-1 accuracy lost on held-out images, or milliseconds"),
        Column("low", pa.float64(), "", "lower end of the 95 % interval"),
        Column("high", pa.float64(), "", "upper end of the 95 % interval"),
        Column("meets", pa.bool_(), "", "whether the value is within the budget"),
        Column("chosen", pa.bool_(), "", "whether the model is the result"),
    ),
)

HISTORY = Schema(
    "history.parquet",
    "epoch of a training",
    (
        Column("epoch", pa.int64(), "", "from 1"),
        Column("learning_rate", pa.float64(), "", "at the end of the epoch"),
        Column("train_loss", pa.float64(), "nat", "mean over the images of the epoch, distillation included"),
        Column("validation_loss", pa.float64(), "nat", "on the validation split: cross-entropy, or error of outputs"),
        Column("top1", pa.float64(), "%", "top-1 accuracy on it; null without classes", nullable=True),
        Column("cosine", pa.float64(), "", "of the outputs with the teacher's; null with classes", nullable=True),
        Column(
            "held_out_top1",
            pa.float64(),
            "%",
            "top-1 accuracy on the held-out training images that choose the epoch; null without `choose_by`",
            nullable=True,
        ),
        Column("held_out_cosine", pa.float64(), "", "likewise, without classes", nullable=True),
        Column("seconds", pa.float64(), "s", "wall time of training and validation"),
    ),
)

ACCURACY = Schema(
    "accuracy.parquet",
    "evaluated model (one row)",
    (
        _STAGE,
        Column("images", pa.int64(), "", "validation images evaluated"),
        Column("images_skipped", pa.int64(), "", "validation images skipped because they cannot be decoded"),
        Column("top1", pa.float64(), "%", "top-1 accuracy; null without classes, as the next two", nullable=True),
        Column("top5", pa.float64(), "%", "top-5 accuracy", nullable=True),
        Column("loss", pa.float64(), "nat", "cross-entropy", nullable=True),
        Column("cosine", pa.float64(), "", "of the outputs with the dense model's; null with classes", nullable=True),
        Column(
            "relative_error", pa.float64(), "", "squared distance from these over their squared norm", nullable=True
        ),
        Column(
            "same_class", pa.float64(), "%", "images that keep the dense model's class; null of features", nullable=True
        ),
        Column(
            "probe_images", pa.int64(), "", "validation images of `probe`; null without, as the rest", nullable=True
        ),
        Column(
            "knn", pa.float64(), "%", "those that nearest neighbours by the outputs classify correctly", nullable=True
        ),
        Column("linear", pa.float64(), "%", "those that a linear classifier on the outputs does", nullable=True),
    ),
)

METRICS = Schema(
    "metrics.parquet",
    "evaluated model (one row)",
    (
        *ACCURACY.columns,
        Column("macs", pa.int64(), "MAC/image", "in linear layers, as the paper counts: of kept blocks"),
        Column(
            "macs_all", pa.int64(), "MAC/image", "all matrix products, attention included (half of torch's FLOP count)"
        ),
        Column("parameters", pa.int64(), "", "kept parameters: all minus the pruned weights"),
        Column("sparsity", pa.float64(), "", "share of the weights of prunable layers that is pruned"),
        Column(
            "power_term",
            pa.float64(),
            "",
            "sum of the layers' power terms, as a share of that with all blocks kept; null with factors or narrower",
            nullable=True,
        ),
        Column("energy", pa.float64(), "J/image", "modelled energy of the layers that `macs` counts"),
    ),
)

LAYERS = Schema(
    "layers.parquet",
    "layer that multiplies by a weight matrix, of an evaluated model",
    (
        _STAGE,
        _LAYER,
        Column("role", pa.string(), "", "last part of the name"),
        Column("prunable", pa.bool_(), "", "whether the layer has a mask"),
        Column("blocks", pa.int64(), "", "blocks of the layer; 0 without a mask"),
        Column("blocks_kept", pa.int64(), "", "kept blocks; 0 without a mask"),
        Column("macs", pa.int64(), "MAC/image", "multiply-accumulates of the kept weights"),
        Column("parameters", pa.int64(), "", "kept weights, and biases"),
        Column(
            "power_term",
            pa.float64(),
            "block row",
            "the paper's term: blocks_kept * in_features / 16; 0 without a mask",
        ),
        Column("energy", pa.float64(), "J/image", "modelled energy of the layer with its kept weights"),
    ),
)

SPEED = Schema(
    "speed.parquet",
    "configuration of a benchmark, at a batch size",
    (
        _STAGE,
        Column(
            "configuration",
            pa.string(),
            "",
            "configuration: dense, masked or sparse model, eager, compiled or by an engine",
        ),
        Column("batch_size", pa.int64(), "", "images per pass"),
        Column("rounds", pa.int64(), "", "timed passes; in each round all configurations are interleaved"),
        Column("milliseconds", pa.float64(), "ms/pass", "median"),
        Column("milliseconds_low", pa.float64(), "ms/pass", "lower end of the median's 95 % interval"),
        Column("milliseconds_high", pa.float64(), "ms/pass", "upper end"),
        Column("milliseconds_min", pa.float64(), "ms/pass", "fastest pass"),
        Column("milliseconds_max", pa.float64(), "ms/pass", "slowest pass"),
        Column("images_per_second", pa.float64(), "1/s", "from the median"),
        Column("reference", pa.string(), "", "the fastest dense configuration"),
        Column("speed_up", pa.float64(), "", "median over the rounds of the reference's time over the configuration's"),
        Column("speed_up_low", pa.float64(), "", "lower end of the median's 95 % interval"),
        Column("speed_up_high", pa.float64(), "", "upper end"),
        Column(
            "top1",
            pa.float64(),
            "%",
            "accuracy of an engine that quantises to int8 itself, on `engine_images`; null: that of the model",
            nullable=True,
        ),
        Column("images", pa.int64(), "", "images of this accuracy; null like top1", nullable=True),
        Column("kernel", pa.string(), "", "kernel of block-sparse layers here, or masked dense"),
        Column("dtype", pa.string(), "", "of weights and activations"),
        Column("device", pa.string(), "", "cpu or cuda"),
        Column("device_name", pa.string(), "", "name by the system"),
        Column("threads", pa.int64(), "", "CPU threads of torch"),
        Column("torch", pa.string(), "", "version"),
    ),
)

CHOICES = Schema(
    "choices.parquet",
    "masked layer or attention of a benchmarked model, at a batch size",
    (
        Column("batch_size", pa.int64(), "", "images per pass"),
        Column("module", pa.string(), "", "name in the model"),
        Column("kind", pa.string(), "", "layer, or attention (its product alone)"),
        Column("by_kernel", pa.bool_(), "", "whether our kernel computes it, because it was measured to be faster"),
        Column("precision", pa.string(), "", "type of the products"),
        Column("sparsity", pa.float64(), "", "share of its blocks that is pruned; null of attention", nullable=True),
        Column("torch_milliseconds", pa.float64(), "ms/pass", "without our kernel; null if not timed", nullable=True),
        Column("kernel_milliseconds", pa.float64(), "ms/pass", "with our kernel; null if not timed", nullable=True),
        Column("reason", pa.string(), "", "why it was not replaced; empty if our kernel computes it"),
    ),
)

ENERGY = Schema(
    "energy.parquet",
    "measurement of a model, or the reason why there is none",
    (
        Column("configuration", pa.string(), "", "what ran"),
        Column("source", pa.string(), "", "counter: nvml (GPU) or rapl (CPU and DRAM); null if none", nullable=True),
        Column("reason", pa.string(), "", "why nothing was measured; null if it was", nullable=True),
        Column("repeat", pa.int64(), "", "from 1, configurations interleaved; 0 if nothing was measured"),
        Column("images", pa.int64(), "", "images computed in the window; 0 if nothing was measured"),
        Column("seconds", pa.float64(), "s", "length of the window", nullable=True),
        Column("joules", pa.float64(), "J", "increase of the counter, idle power included", nullable=True),
        Column("idle_watts", pa.float64(), "W", "power of the idle device, before this repeat", nullable=True),
        Column("joules_net", pa.float64(), "J", "joules - idle_watts * seconds", nullable=True),
    ),
)

ALL = (
    IMAGES,
    SAMPLES,
    PLAN,
    COSTS,
    LATENCY,
    BLOCKS,
    CURVES,
    ALLOCATION,
    FRONTIER,
    OUTCOMES,
    FREEDOMS,
    INTERACTIONS,
    HISTORY,
    ACCURACY,
    METRICS,
    LAYERS,
    SPEED,
    CHOICES,
    ENERGY,
)
