"""DALI graphs from encoded JPEG files to normalised batches.

The functions run once, while a pipeline is built; a `DataNode` represents a future batch. Per-image arguments
are CPU nodes; images are on the CPU or the GPU.
"""

from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from lpvit.data.preprocessing import Augmentation, Preprocessing
from lpvit.data.rand_augment import (
    AUTO_CONTRAST,
    BITS,
    COLOR,
    EQUALIZE,
    SHARPNESS,
    SHIFT,
    SOLARIZE,
    SOLARIZE_ADD,
    TONE,
    WARP,
    RandAugmentDraws,
)
from lpvit.errors import LpvitError

_INTERPOLATIONS = {
    "nearest": types.INTERP_NN,
    "bilinear": types.INTERP_LINEAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow


def interpolation_type(name: str) -> types.DALIInterpType:
    """DALI's name of an interpolation.

    Raises:
        LpvitError: DALI has no such interpolation.
    """
    if name not in _INTERPOLATIONS:
        known = ", ".join(_INTERPOLATIONS)
        raise LpvitError(f"loader 'dali': interpolation '{name}' is not one of {known}; choose 'loader: timm'")
    return _INTERPOLATIONS[name]


def evaluation_images(encoded: DataNode, preprocessing: Preprocessing, device: str) -> DataNode:
    """Decodes, resizes and crops as timm does in evaluation: (height, width, 3), uint8.

    Only the part of the image that the crop keeps is resized: the crop window is traced back to the source.
    """
    shape = fn.peek_image_shape(encoded, adjust_orientation=False)
    height, width = shape[0], shape[1]
    images = fn.decoders.image(encoded, device=_decoder(device), output_type=types.RGB, adjust_orientation=False)
    crop_height, crop_width = preprocessing.crop_size
    resized_height, resized_width = _resized_shape(height, width, preprocessing)
    interpolation = interpolation_type(preprocessing.interpolation)
    if preprocessing.crop_mode == "border":
        size = fn.stack(_as_float(resized_height), _as_float(resized_width))
        resized = fn.resize(images, size=size, interp_type=interpolation, antialias=True)
        return _crop_or_pad(resized, resized_height, resized_width, preprocessing)
    top = _half_to_even(resized_height - crop_height)
    left = _half_to_even(resized_width - crop_width)
    y_scale, x_scale = height / _as_float(resized_height), width / _as_float(resized_width)
    return fn.resize(
        images,
        size=[crop_height, crop_width],
        roi_start=fn.stack(top * y_scale, left * x_scale),
        roi_end=fn.stack((top + crop_height) * y_scale, (left + crop_width) * x_scale),
        interp_type=interpolation,
        antialias=True,
    )


def random_crops(encoded: DataNode, preprocessing: Preprocessing, augmentation: Augmentation, device: str) -> DataNode:
    """Decodes a random part of every image and resizes it: (height, width, 3), uint8."""
    crops = fn.decoders.image_random_crop(
        encoded,
        device=_decoder(device),
        output_type=types.RGB,
        adjust_orientation=False,
        random_area=list(augmentation.crop_scale),
        random_aspect_ratio=list(augmentation.crop_ratio),
        num_attempts=10,
    )
    interpolation = interpolation_type(preprocessing.interpolation)
    return fn.resize(crops, size=list(preprocessing.crop_size), interp_type=interpolation, antialias=True)


def jitter_colors(images: DataNode, strength: float) -> DataNode:
    """Random brightness, contrast and saturation, each a factor around 1, in this order.

    torchvision shuffles the three; here the order is fixed, which lets brightness and contrast share a pass.
    """
    span = [max(0.0, 1 - strength), 1 + strength]
    images = _change_tone(images, fn.random.uniform(range=span), fn.random.uniform(range=span))
    return fn.saturation(images, saturation=fn.random.uniform(range=span))


def rand_augment(images: DataNode, draws: RandAugmentDraws, layers: int, preprocessing: Preprocessing) -> DataNode:
    """Applies RandAugment as drawn.

    Args:
        images: (height, width, 3), uint8.
        draws: Nodes: the arrays of `RandAugmentDraws` without N.
        layers: L.
        preprocessing: Its mean fills pixels from outside the image.
    """
    fill = 255 * sum(preprocessing.mean) / len(preprocessing.mean)
    for layer in range(layers):
        images = _rand_augment_layer(images, RandAugmentDraws(*(node[layer] for node in draws)), fill)
    return images


def normalise(images: DataNode, preprocessing: Preprocessing, mirror: DataNode | int = 0) -> DataNode:
    """Flips where asked, normalises, and brings the channels to the front: (3, height, width), float32."""
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=[255 * value for value in preprocessing.mean],
        std=[255 * value for value in preprocessing.std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )


def _resized_shape(height: DataNode, width: DataNode, preprocessing: Preprocessing) -> tuple[DataNode, DataNode]:
    """(height, width) after timm's resize, with its rounding."""
    target_height, target_width = preprocessing.resize_size
    if preprocessing.crop_mode == "squash":
        return height * 0 + target_height, width * 0 + target_width
    if preprocessing.crop_mode == "center" and target_height == target_width:
        short = math.min(height, width)
        return height * target_height // short, width * target_width // short
    height, width = fn.cast(height, dtype=types.FLOAT64), fn.cast(width, dtype=types.FLOAT64)
    y_ratio, x_ratio = height / target_height, width / target_width
    ratio = math.max(y_ratio, x_ratio) if preprocessing.crop_mode == "border" else math.min(y_ratio, x_ratio)
    return _rounded(height / ratio), _rounded(width / ratio)


def _crop_or_pad(images: DataNode, height: DataNode, width: DataNode, preprocessing: Preprocessing) -> DataNode:
    """Centres images of (height, width) in the crop size; pixels outside get the mean colour."""
    crop_height, crop_width = preprocessing.crop_size
    top, left = _crop_or_pad_start(height, crop_height), _crop_or_pad_start(width, crop_width)
    return fn.slice(
        images,
        start=fn.stack(top, left),
        shape=[crop_height, crop_width],
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=[float(round(255 * value)) for value in preprocessing.mean],
    )


def _crop_or_pad_start(length: DataNode, crop: int) -> DataNode:
    inside = math.max(length - crop, 0)
    outside = math.max(crop - length, 0)
    return fn.cast(_half_to_even(inside) - outside // 2, dtype=types.INT32)


def _half_to_even(length: DataNode) -> DataNode:
    """Half of a non-negative integer, rounded as Python's round() does."""
    half = length // 2
    return half + (length & 1) * (half & 1)


def _rounded(value: DataNode) -> DataNode:
    """A non-negative float64, rounded as Python's round() does; sides of 4:3 photographs often end in a half."""
    whole = fn.cast(math.floor(value), dtype=types.INT64)
    remainder = value - whole
    return whole + ((remainder > 0.5) | ((remainder == 0.5) & ((whole & 1) == 1)))


def _as_float(value: DataNode) -> DataNode:
    return fn.cast(value, dtype=types.FLOAT)


def _rand_augment_layer(images: DataNode, draws: RandAugmentDraws, fill: float) -> DataNode:
    """One operation on every image, in the branch of its kind; ``draws`` are nodes without N and L."""
    if draws.kind == WARP:
        images = fn.warp_affine(images, matrix=draws.matrix, fill_value=fill, interp_type=types.INTERP_LINEAR)
    if draws.kind == SHIFT:
        images = fn.warp_affine(images, matrix=draws.matrix, fill_value=fill, interp_type=types.INTERP_NN)
    if draws.kind == TONE:
        images = _change_tone(images, draws.brightness, draws.contrast)
    if draws.kind == COLOR:
        images = fn.saturation(images, saturation=draws.saturation)
    if draws.kind == SHARPNESS:
        images = fn.filter(images, _beside(images, draws.kernel))
    if draws.kind == BITS:
        images = (images & _beside(images, draws.kept_bits)) ^ _beside(images, draws.flipped_bits)
    if draws.kind == SOLARIZE:
        images = images ^ ((images >= _beside(images, draws.threshold)) * types.Constant(255, dtype=types.UINT8))
    if draws.kind == SOLARIZE_ADD:
        images = images + (images < 128) * _beside(images, draws.added)
    if draws.kind == EQUALIZE:
        images = fn.equalize(images)
    if draws.kind == AUTO_CONTRAST:
        images = _stretch_contrast(images)
    return images


def _change_tone(images: DataNode, brightness: DataNode, contrast: DataNode) -> DataNode:
    """Scales contrast around the mean grey value, then brightness (of which one is 1 in RandAugment)."""
    channel_means = fn.reductions.mean(images, axis_names="HW")
    weights = types.Constant(_GREY_WEIGHTS, dtype=types.FLOAT, device=images.device)
    grey = fn.reductions.sum(channel_means * weights, keep_dims=images.device == "gpu")
    if images.device == "cpu":
        return fn.brightness_contrast(images, brightness=brightness, contrast=contrast, contrast_center=grey)
    # an argument must be on the CPU, and the mean of a GPU image is not
    contrasted = grey + (images - grey) * contrast.gpu()
    return fn.cast_like(contrasted * brightness.gpu(), images)


def _stretch_contrast(images: DataNode) -> DataNode:
    """Spreads each channel from its smallest and largest value to 0 and 255; a constant channel is unchanged."""
    low = fn.reductions.min(images, axis_names="HW", keep_dims=True)
    high = fn.reductions.max(images, axis_names="HW", keep_dims=True)
    flat = low == high
    scale = 255.0 / (high - low + 255 * flat)
    return fn.cast_like((images - low * (flat ^ True)) * scale, images)


def _beside(images: DataNode, parameter: DataNode) -> DataNode:
    return parameter.gpu() if images.device == "gpu" else parameter


def _decoder(device: str) -> str:
    return "mixed" if device == "gpu" else "cpu"
