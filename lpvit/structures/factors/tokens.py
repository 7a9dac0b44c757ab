"""Whether the calibration images suffice."""

import logging
from collections.abc import Mapping, Sequence

from lpvit.models.analysis.layers import LayerSpec
from lpvit.moments.moments import LayerMoments

_logger = logging.getLogger(__name__)


def log_if_few_tokens(layers: Sequence[LayerSpec], moments: Mapping[str, LayerMoments]) -> None:
    """Says from how many images on the inputs of all layers can be spanned, where there are fewer images."""
    images = moments[layers[0].name].images
    widest = max(layers, key=lambda layer: (layer.in_features + 1) / layer.tokens)
    needed = -(-(widest.in_features + 1) // widest.tokens)
    if images < needed:
        _logger.warning(
            "%s: %d calibration images do not span its %d inputs, so that damping and ridge decide; from %d images on "
            "they need not",
            *(widest.name, images, widest.in_features, needed),
        )
