"""The energy model worked by hand, and what it says of models."""

import pytest

from lpvit.costs.energy import energy_per_weight, fixed_energy, layer_energy
from lpvit.costs.settings import Energy

PICOJOULE = 1e-12


def test_a_weight_costs_its_arithmetic_its_operands_and_its_way_from_memory():
    # float32: 4.6 pJ; two operands of 4 bytes at 1.25 pJ, each for 16 MACs; 4 bytes from DRAM and on-chip memory.
    assert energy_per_weight(10, Energy()) == pytest.approx(PICOJOULE * (10 * (4.6 + 0.625) + 4 * 175))
    # int8, eight images: 0.23 pJ; two operands of a byte; DRAM only for every eighth image.
    assert energy_per_weight(10, Energy(dtype="int8", batch_size=8)) == pytest.approx(
        PICOJOULE * (10 * (0.23 + 2 * 1.25 / 16) + 162.5 / 8 + 12.5)
    )


def test_activations_are_read_and_written_once_whatever_is_pruned():
    assert fixed_energy(30, 20, 10, Energy(dtype="float16")) == pytest.approx(PICOJOULE * 10 * 50 * 2 * 12.5)
    model = Energy()
    assert layer_energy(30, 20, 10, 0, model) == fixed_energy(30, 20, 10, model)
    block = layer_energy(30, 20, 10, 600, model) - layer_energy(30, 20, 10, 600 - 16, model)
    assert block == pytest.approx(16 * energy_per_weight(10, model))


def test_every_constant_can_be_replaced():
    free = {"mac": 0.001, "dram": 0, "sram": 0, "buffer": 0}
    assert layer_energy(3, 2, 5, 6, Energy(**free)) == pytest.approx(PICOJOULE * 5 * 6 * 0.001)
    prices = {"mac": 1.0, "dram": 1.0, "sram": 1.0, "buffer": 1.0}
    parts = {name: layer_energy(3, 2, 5, 6, Energy(**{**free, name: price})) for name, price in prices.items()}
    base = layer_energy(3, 2, 5, 6, Energy(**free))
    rises = {name: (part - base) / PICOJOULE for name, part in parts.items()}
    expected = {"mac": 30 * 0.999, "dram": 24, "sram": 24 + 5 * 5 * 4, "buffer": 30 * 2 * 4 / 16}
    assert rises == pytest.approx(expected)


def test_where_tokens_are_few_memory_outweighs_arithmetic():
    """At batch 1 a weight that serves one token costs more to fetch than to use; a ViT's 197 tokens turn it round."""
    fetch = energy_per_weight(0, Energy())
    assert fetch > 100 * (energy_per_weight(1, Energy()) - fetch)
    assert fetch < energy_per_weight(197, Energy()) - fetch
