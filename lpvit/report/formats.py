"""Names and numbers for tables."""

import math
from collections.abc import Sequence

import pandas as pd

NAMES = ["dataset", "model", "experiment"]  # columns that identify the model of a row

STAGES = {
    "pruned": "pruned alone",
    "quantised": "pruned, quantised",
    "finetuned": "fine-tuned",
    "finetuned_quantised": "fine-tuned, quantised",
}

BUDGETS = {
    "macs": "MACs kept, of the dense model",
    "sparsity": "sparsity of the prunable layers",
    "parameters": "parameters kept, of the dense model",
    "bytes": "bytes kept, of the dense model",
    "energy": "modelled energy kept, of the dense model",
    "latency": "measured time kept, of the prunable layers",
}


def interval(low: float, high: float) -> str:
    """Empty where there is none."""
    return "" if math.isnan(low) else f"{low:.1f} to {high:.1f}"


def human(quantity: float) -> str:
    """Three significant digits and an SI prefix: 4608000000 -> ``4.61 G``; integers below 1000 unchanged."""
    if quantity < 1000 and float(quantity).is_integer():
        return str(int(quantity))
    thousands = 0
    while float(f"{quantity:.3g}") >= 1000:
        quantity /= 1000
        thousands += 1
    decimals = 3 - len(str(int(float(f"{quantity:.3g}"))))
    return f"{quantity:.{decimals}f} {' kMGTP'[thousands]}".rstrip()


def joules(energy: float) -> str:
    """Three significant digits in the unit that fits: 0.0000025 -> ``2.50 µJ``."""
    for prefix, size in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if energy >= size:
            return f"{human(energy / size)} {prefix}J"
    return f"{human(energy / 1e-9)} nJ"


def markdown(table: pd.DataFrame, text_columns: int) -> str:
    cells = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: Sequence[str]) -> str:
        padded = [
            c.ljust(w) if i < text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < text_columns else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])]) + "\n"
