"""Keys of the last release: read, with one line, or refused where they never had an effect."""

import copy
import logging
import warnings
from typing import Any

import pytest
from conftest import TINY

import lpvit
from lpvit.allocation.allocators.lpvit import SlopeRule
from lpvit.allocation.settings import Budget, budget_of_format_1
from lpvit.benchmark.settings import Benchmark
from lpvit.config.config import parse_config
from lpvit.errors import LpvitError
from lpvit.schemes.kinds.sparse_attention import SparseAttention
from lpvit.schemes.settings import read_scheme
from lpvit.structures.blocks.settings import Blocks
from lpvit.structures.width.settings import Width


def with_keys(section: str, **keys: Any) -> dict[str, Any]:
    raw = copy.deepcopy(TINY)
    raw[section][{"prunings": "b8", "budgets": "half"}[section]].update(keys)
    return raw


@pytest.mark.parametrize(
    ("section", "old", "new", "line"),
    [
        (
            "budgets",
            {"allocator": "lpvit", "smoothing": 0.9, "power_beta": False},
            {"allocator": {"name": "lpvit", "smoothing": 0.9, "power_beta": "off"}},
            "budgets.half: smoothing, power_beta: moved into 'allocator'; "
            "write allocator: {name: lpvit, smoothing: 0.9, power_beta: off}",
        ),
        (
            "prunings",
            {"distortion": "gauss_newton", "form": "diagonal"},
            {"distortion": {"name": "gauss_newton", "form": "diagonal"}},
            "prunings.b8: form: moved into 'distortion'; write distortion: {name: gauss_newton, form: diagonal}",
        ),
        (
            "prunings",
            {"order": 1},  # of the default
            {"distortion": {"name": "taylor", "order": 1}},
            "prunings.b8: order: moved into 'distortion'; write distortion: {name: taylor, order: 1}",
        ),
    ],
)
def test_an_old_key_is_read_with_one_line(
    section: str, old: dict[str, Any], new: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = parse_config(with_keys(section, **old))
    assert [record.getMessage() for record in caplog.records] == [f"config: {line}"]
    caplog.clear()
    assert config == parse_config(with_keys(section, **new))
    assert not caplog.records


@pytest.mark.parametrize(
    ("section", "old", "message"),
    [
        ("budgets", {"power_beta": "auto"}, "budgets.half.power_beta: belongs to allocator 'lpvit'"),
        ("budgets", {"allocator": {"name": "erk"}, "smoothing": 1}, "budgets.half.smoothing: belongs to allocator"),
        ("prunings", {"form": "diagonal"}, "prunings.b8.form: belongs to distortion 'gauss_newton'"),
        ("prunings", {"structure": "width", "order": 1}, "prunings.b8.order: unknown key"),
    ],
)
def test_an_old_key_of_another_strategy_is_refused(section: str, old: dict[str, Any], message: str) -> None:
    with pytest.raises(LpvitError, match=f"config: {message}"):
        parse_config(with_keys(section, **old))


def test_an_old_budget_of_width_gives_its_experiments_a_pruning(caplog: pytest.LogCaptureFixture) -> None:
    raw = with_keys("budgets", structure="width", reconstruction="least_squares")
    raw["prunings"]["b8"]["batch_size"] = 7
    raw["budgets"]["other"] = {"macs": 0.5, "structure": "blocks"}
    raw["experiments"]["other"] = {**raw["experiments"]["main"], "budget": "other"}
    config = parse_config(raw)
    assert [record.getMessage() for record in caplog.records] == [
        "config: budgets.half: structure: belongs to the pruning now; write a pruning {structure: width} and name it "
        "in the experiments of this budget",
        "config: budgets.other: structure: belongs to the pruning now; omit it",
    ]
    assert config.prunings[config.experiments["main"].pruning] == Width(batch_size=7)
    assert config.experiments["other"].pruning == "b8"
    assert config.budgets["half"] == Budget(macs=0.6, reconstruction="least_squares")


def test_the_old_key_of_configurations_is_read_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    config = parse_config(with_keys("budgets") | {"benchmark": {"arms": ["dense", "sparse"], "seconds": 2}})
    assert [record.getMessage() for record in caplog.records] == [
        "config: benchmark.arms: is 'configurations' now; write configurations: ['dense', 'sparse']"
    ]
    assert config.benchmark == Benchmark(configurations=("dense", "sparse"), seconds=2)


@pytest.mark.parametrize(
    "raw",
    [
        {"budgets": {"half": {"structure": "width"}}},
        {"budgets": {"half": {"structure": ["width"]}}, "prunings": 3, "experiments": {"main": 3}},
        {"budgets": {"half": {"smoothing": 1, "allocator": 3}}, "prunings": {"b8": {"form": 1, "distortion": "x"}}},
        {"budgets": {"half": {"structure": "width"}}, "experiments": {"main": {"budget": "half", "pruning": [1]}}},
        {"budgets": {"half": {"smoothing": 1, "allocator": {"name": ["lpvit"]}}}},
    ],
)
def test_what_is_wrong_besides_is_told_in_lines(raw: dict[str, Any]) -> None:
    with pytest.raises(LpvitError) as error:
        parse_config(TINY | raw)
    assert all(line.startswith("config: ") for line in str(error.value).splitlines())


def test_in_python_an_old_key_warns_where_it_stands() -> None:
    with pytest.warns(DeprecationWarning, match=r"^Budget: power_beta: moved into 'allocator'") as caught:
        budget = Budget(macs=0.5, allocator="lpvit", power_beta="auto")
    assert budget == Budget(macs=0.5, allocator=SlopeRule(power_beta="auto"))
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(LpvitError, match=r"^Blocks: correction_images: belongs to distortion 'gauss_newton': write"):
        Blocks(block_shape=(16, 16), distortion="taylor", correction_images=64)
    with pytest.raises(LpvitError, match=r"^Budget: structure: belongs to the pruning now: .*lpvit\.Width\(\)$"):
        Budget(macs=0.5, structure="width")


def test_the_old_name_of_blocks_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"lpvit\.Pruning is now lpvit\.Blocks") as caught:
        assert lpvit.Pruning is Blocks
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lpvit.Blocks is Blocks


def test_files_of_format_1_have_the_keys_of_every_strategy() -> None:
    every = {"smoothing": 0.5, "stencil_step": 4, "power_beta": "auto", "structure": "blocks", "macs": 0.5}
    assert Budget.model_validate(budget_of_format_1({**every, "allocator": "exact"})) == Budget(
        macs=0.5, allocator="exact"
    )
    assert Budget.model_validate(budget_of_format_1({**every, "allocator": "lpvit"})).allocator == SlopeRule(
        power_beta="auto"
    )
    flat = {"scheme": "sparse_attention", "stride": 4, "pattern": "fixed", "merged_tokens": 8, "keep_tokens": 0.7}
    assert read_scheme(flat) == SparseAttention(stride=4, pattern="fixed")
    with pytest.raises(ValueError, match="strid"):
        read_scheme({"scheme": "sparse_attention", "strid": 4})
