"""Layout `digits`."""

from pathlib import Path
from typing import Literal

from lpvit.data.layouts import Layout, Split


class Digits(Layout):
    """The 1,797 handwritten digits of scikit-learn, without files; every fifth of a class is for validation."""

    name: Literal["digits"] = "digits"

    def read(self, root: Path, split: str) -> Split:
        import pandas as pd
        from sklearn.datasets import load_digits

        labels = pd.Series(load_digits().target, dtype="int64")
        validates = labels.groupby(labels).cumcount() % 5 == 4
        chosen = labels[~validates if split == "train" else validates].sort_values(kind="stable")
        return Split([f"digits/{number}" for number in chosen.index], chosen.astype(str).tolist())

    def watched(self, root: Path, split: str) -> list[str]:
        return []
