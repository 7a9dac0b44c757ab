"""What made a result lies beside it, and a difference is told in words."""

from pathlib import Path

import pytest

from lpvit.store.records import changes, drop_record, read_record, record_file, write_record

PARAMS = {
    "budget": {"macs": 0.5, "steps": 1},
    "pruning": {"block_shape": (8, 8)},
    "rows": [{"name": "a"}],
    "resume": "results/resume.pt",
    "sources": {"curves/products.py": "0123abcd", "allocate.py": "01230123"},
}


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    log = tmp_path / "costs@a.b.log"
    write_record(log, "count", PARAMS)
    assert record_file(log).name == "costs@a.b.settings.json"
    recorded = read_record(log)
    assert recorded is not None
    assert changes(recorded, PARAMS) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"budget": {"macs": 0.3, "steps": 1}}, "budget.macs: 0.5 -> 0.3"),
        ({"budget": {"macs": 0.5}}, "budget.steps: 1 -> nothing"),
        ({"pruning": {"block_shape": [8, 16]}}, "pruning.block_shape: [8, 8] -> [8, 16]"),
        ({"rows": [{"name": "a"}, {"name": "b"}]}, 'rows.1.name: nothing -> "b"'),
        ({"resume": "elsewhere/resume.pt"}, ""),
        (
            {"sources": {"curves/products.py": "ffffffff", "allocate.py": "01230123"}},
            "code of curves/products.py",
        ),
        (
            {"budget": {"macs": 1, "steps": 2, "allocator": "exact"}, "rows": "r"},
            'budget.allocator: nothing -> "exact", budget.macs: 0.5 -> 1, budget.steps: 1 -> 2, and 2 more',
        ),
    ],
)
def test_what_changed_is_named(tmp_path: Path, change: dict, told: str) -> None:
    write_record(tmp_path / "a.log", "rule", PARAMS)
    recorded = read_record(tmp_path / "a.log")
    assert recorded is not None
    assert changes(recorded, PARAMS | change) == told


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": 3}', "\x00\xff"])
def test_a_record_that_is_none_says_nothing(tmp_path: Path, text: str) -> None:
    record_file(tmp_path / "a.log").write_bytes(text.encode("latin-1"))
    assert read_record(tmp_path / "a.log") is None


def test_a_job_that_begins_leaves_no_record_of_what_was_before(tmp_path: Path) -> None:
    write_record(tmp_path / "a.log", "rule", PARAMS)
    drop_record(tmp_path / "a.log")
    drop_record(tmp_path / "a.log")
    assert read_record(tmp_path / "a.log") is None
