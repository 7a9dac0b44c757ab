"""RandAugment through DALI against timm's operations, and its random choices."""

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from lpvit.data.preprocessing import RandAugmentPolicy
from lpvit.data.rand_augment import NOTHING, OPERATIONS, RandAugmentDraws, draw_rand_augment, parametrise

TIMM_NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "solarize_add": "SolarizeAdd",
    "color": "Color",
    "contrast": "Contrast",
    "brightness": "Brightness",
    "sharpness": "Sharpness",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
WITH_INCREASING_FORM = {"posterize", "solarize", "color", "contrast", "brightness", "sharpness"}


def picture() -> np.ndarray:
    """A smooth colour picture with some noise; level 0.7 translates its sides, 200 x 400, by whole pixels."""
    y, x = np.mgrid[:200, :400]
    waves = [110 + 50 * np.sin(x / 50 + phase) + 40 * np.cos(y / 40 - phase) for phase in (0, 1, 2)]
    return (np.stack(waves, axis=-1) + np.random.default_rng(0).uniform(0, 20, (200, 400, 3))).astype(np.uint8)


def through_dali(image: np.ndarray, draws: RandAugmentDraws) -> np.ndarray:
    from nvidia.dali import fn, pipeline_def

    from lpvit.data import dali_graph
    from lpvit.data.preprocessing import Preprocessing

    count, layers = draws.kind.shape
    preprocessing = Preprocessing((3, *image.shape[:2]), (0.5,) * 3, (0.5,) * 3)

    @pipeline_def(batch_size=count, num_threads=1, device_id=None, enable_conditionals=True)
    def pipeline():  # type: ignore[no-untyped-def]
        images = fn.external_source([[image] * count], layout="HWC")
        nodes = fn.external_source([draws], num_outputs=len(draws), batch=True)
        return dali_graph.rand_augment(images, RandAugmentDraws(*nodes), layers, preprocessing)

    built = pipeline()
    built.build()
    result: np.ndarray = built.run()[0].as_array()
    return result


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_operation_does_what_timms_does(increasing: bool, sign: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: sign * value)
    image, names = picture(), np.array(OPERATIONS)[:, None]
    draws = parametrise(names, np.full(names.shape, 0.7), np.full(names.shape, sign), increasing, image.shape[:2])
    results = through_dali(image, draws)
    settings = {"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BILINEAR}
    for name, result in zip(OPERATIONS, results, strict=True):
        suffix = "Increasing" if increasing and name in WITH_INCREASING_FORM else ""
        operation = auto_augment.AugmentOp(TIMM_NAMES[name] + suffix, prob=1, magnitude=7, hparams=settings)
        expected = np.asarray(operation(Image.fromarray(image)))
        error = np.abs(result.astype(int) - expected).mean()
        assert error < (3 if name == "equalize" else 1), f"{name}: {error} grey levels"  # OpenCV's and Pillow's differ
        assert np.abs(expected.astype(int) - image).mean() > error + 0.05, f"{name} changes the picture"


def test_operations_that_are_not_applied_leave_the_image_alone() -> None:
    nothing = np.full((2, 3), "nothing")
    draws = parametrise(nothing, np.ones((2, 3)), np.ones((2, 3)), True, (200, 400))
    assert (through_dali(picture(), draws) == picture()).all()


def test_choices_follow_the_policy() -> None:
    policy = RandAugmentPolicy.parse("rand-m9-n3-p0.7-mstd0.5-inc1")
    draws = draw_rand_augment(policy, 4000, (100, 200), np.random.default_rng(0))
    assert draws.kind.shape == (4000, 3)
    assert np.mean(draws.kind != NOTHING) == pytest.approx(0.7, abs=0.02)
    shifts = draws.matrix[..., 0, 2][(draws.matrix[..., 0, 2] != 0) & (draws.matrix[..., 0, 0] == 1)]
    assert len(shifts) == pytest.approx(12000 * 0.7 / 15, rel=0.15)
    assert np.abs(shifts).mean() == pytest.approx(0.45 * 0.9 * 200, rel=0.02)
    assert np.abs(shifts).std() == pytest.approx(0.45 * 0.05 * 200, rel=0.2)
    assert np.abs(shifts).max() <= 0.45 * 200
    assert np.mean(shifts > 0) == pytest.approx(0.5, abs=0.06)


def test_an_infinite_standard_deviation_draws_uniform_magnitudes() -> None:
    policy = RandAugmentPolicy.parse("rand-m8-p1-mstd101")
    draws = draw_rand_augment(policy, 4000, (100, 100), np.random.default_rng(0))
    shifts = np.abs(draws.matrix[..., 1, 2][(draws.matrix[..., 1, 2] != 0) & (draws.matrix[..., 0, 0] == 1)])
    assert np.quantile(shifts, [0.25, 0.5, 0.75]) == pytest.approx(
        0.45 * 0.8 * 100 * np.array([0.25, 0.5, 0.75]), rel=0.15
    )
