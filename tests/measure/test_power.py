"""The arithmetic of measured energy, with a clock and a counter that tell what they are told."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lpvit.measure import power
from lpvit.measure.power import Counter, find_counter, measure_energy
from lpvit.store.schemas import ENERGY
from lpvit.store.tables import read_parquet, write_parquet


class Machine:
    """A device that idles at 10 W and draws more in a call, whose clock is the only one there is."""

    def __init__(self):
        self.now, self.joules, self.calls = 0.0, 123.0, []

    def spend(self, seconds, watts):
        self.now += seconds
        self.joules += seconds * watts

    def function(self, name, seconds, watts):
        def call():
            self.calls.append(name)
            self.spend(seconds, watts)

        return call


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    clock = SimpleNamespace(perf_counter=lambda: machine.now, sleep=lambda seconds: machine.spend(seconds, 10))
    monkeypatch.setattr(power, "time", clock)
    return machine


def measured(machine, **options):
    functions = {"slow": machine.function("slow", 0.5, 50), "fast": machine.function("fast", 0.25, 40)}
    counter = Counter("nvml", lambda: machine.joules)
    return measure_energy(functions, 4, device="cpu", counter=counter, **options)


def test_energy_is_what_the_counter_rose_by_gross_and_net_of_the_idle_power(machine):
    table = measured(machine, seconds=10, repeats=3)
    assert len(table) == 6
    assert table["idle_watts"].tolist() == pytest.approx([10] * 6)
    assert (table["seconds"] >= 10).all()
    per_image = table.assign(gross=table["joules"] / table["images"], net=table["joules_net"] / table["images"])
    per_image = per_image.groupby("configuration")[["gross", "net"]].agg(["min", "max"])
    assert per_image.loc["slow"].tolist() == pytest.approx([50 * 0.5 / 4] * 2 + [40 * 0.5 / 4] * 2)
    assert per_image.loc["fast"].tolist() == pytest.approx([40 * 0.25 / 4] * 2 + [30 * 0.25 / 4] * 2)
    assert table["joules"].tolist() == pytest.approx(
        table["seconds"] * table["configuration"].map({"slow": 50, "fast": 40})
    )


def test_arms_take_turns_backwards_every_other_time(machine):
    table = measured(machine, seconds=2, repeats=3)
    assert table["configuration"].tolist() == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert table["repeat"].tolist() == [1, 1, 2, 2, 3, 3]
    order = [name for i, name in enumerate(machine.calls) if i == 0 or machine.calls[i - 1] != name]
    assert order == ["slow", "fast", "slow", "fast", "slow", "fast"]  # the first two warm up


def test_a_machine_without_a_counter_gives_a_row_with_the_reason(tmp_path, caplog):
    table = measure_energy({"a": lambda: 1 / 0, "b": lambda: 1 / 0}, 4, device="cpu", counter="no counter here")
    assert table["reason"].tolist() == ["no counter here"] * 2
    assert table["joules"].isna().all()
    assert "not measured on this machine: no counter here" in caplog.text
    write_parquet(table, tmp_path / "energy.parquet", ENERGY)
    assert read_parquet(tmp_path / "energy.parquet", ENERGY)["configuration"].tolist() == ["a", "b"]


def test_a_measured_table_fits_its_schema(machine, tmp_path):
    write_parquet(measured(machine, seconds=1, repeats=1), tmp_path / "energy.parquet", ENERGY)


def zone(folder, name, microjoules, wraps_at=1_000_000):
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", wraps_at)):
        (folder / file).write_text(f"{value}\n")


def test_rapl_sums_packages_and_memory_and_counts_on_when_a_counter_starts_again(tmp_path):
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    for folder, name in zones.items():
        zone(tmp_path / folder, name, 900_000)
    counter = power._rapl(tmp_path)
    assert counter.source == "rapl"
    before = counter.read()
    zone(tmp_path / "intel-rapl:0", "package-0", 200_000)  # a round of 1 J has passed
    zone(tmp_path / "intel-rapl:0:1", "dram", 950_000)
    zone(tmp_path / "intel-rapl:0:0", "core", 999_000)
    assert counter.read() - before == pytest.approx(0.3 + 0.05)
    assert counter.read() - before == pytest.approx(0.3 + 0.05)


def test_rapl_that_is_absent_or_closed_is_a_reason(tmp_path, monkeypatch):
    assert "no processor package" in power._rapl(tmp_path)
    zone(tmp_path / "intel-rapl:0", "package-0", 1)

    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", closed)
    assert power._rapl(tmp_path).endswith("may only be read by root; give read access to it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_absent_is_a_reason_and_nothing_is_printed():
    code = "from lpvit.measure.power import find_counter; assert isinstance(find_counter('cuda'), str)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def test_zeus_that_is_absent_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    assert find_counter("cuda") == "zeus is not installed; pip install 'lpvit[power]'"


@pytest.mark.gpu
def test_a_busy_gpu_needs_more_than_an_idle_one():
    matrix = torch.randn(4096, 4096, device="cuda")
    table = measure_energy({"product": lambda: matrix @ matrix}, 1, device="cuda", seconds=2, repeats=2)
    assert table["source"].tolist() == ["nvml"] * 2
    assert (table["seconds"] >= 1.5).all()
    assert (table["joules_net"] > 0).all()
