"""Draws the diagrams of the documentation: `python docs/diagrams.py` rewrites those in docs/images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
_BOLD = ' font-weight="bold"'
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, LINE = 216, 58, 36, 34, 12, 17


@dataclass(frozen=True)
class Box:
    """A box in a grid: column, row, and its lines of text, of which the first is bold."""

    column: float
    row: float
    lines: tuple[str, ...]

    @property
    def centre(self) -> tuple[float, float]:
        """In pixels."""
        return (
            MARGIN + self.column * (WIDTH + GAP_X) + WIDTH / 2,
            MARGIN + self.row * (HEIGHT + GAP_Y) + HEIGHT / 2,
        )


@dataclass(frozen=True)
class Arrow:
    """From one box to another; dashed where the stage is optional."""

    start: str
    end: str
    dashed: bool = False
    label: str = ""


METHOD = {
    "images": Box(0, 0, ("calibration images x", "a few hundred, no labels")),
    "model": Box(0, 1, ("dense model f(x; W)", "layers l, targets T")),
    "products": Box(1, 0.5, ("block products c_b", "probes v, backward passes")),
    "saliency": Box(2, 0, ("saliency E[c_b²]", "order of the blocks")),
    "curves": Box(2, 1, ("curves δ_l(k)", "distortion of k blocks pruned")),
    "allocation": Box(3, 0.5, ("allocation k_l", "Σ cost ≤ budget")),
    "masks": Box(3, 1.7, ("keep masks M_l", "most salient blocks kept")),
    "refit": Box(2, 2.3, ("reconstruction", "least squares: inputs A, targets T")),
    "pruned": Box(1, 2.3, ("pruned model f(x; W̃)", "exact zeros in pruned blocks")),
    "finetune": Box(0, 2.3, ("fine-tuning", "masks M_l fixed")),
}
METHOD_ARROWS = [
    Arrow("images", "products"),
    Arrow("model", "products"),
    Arrow("products", "saliency"),
    Arrow("products", "curves"),
    Arrow("saliency", "allocation"),
    Arrow("curves", "allocation"),
    Arrow("allocation", "masks"),
    Arrow("masks", "refit"),
    Arrow("refit", "pruned"),
    Arrow("pruned", "products", dashed=True, label="next round"),
    Arrow("pruned", "finetune"),
]

PIPELINE = {
    "index": Box(0, 0, ("index_images", "images.parquet")),
    "check": Box(1, 0, ("check_experiments", "plan.parquet")),
    "sample": Box(0, 1, ("sample_calibration", "samples.parquet")),
    "dense": Box(1, 1, ("fetch_dense, train_dense", "dense.pt, costs.parquet")),
    "count": Box(2, 3, ("count_costs (schemes)", "costs@schemes.parquet")),
    "statistics": Box(0, 2, ("collect_statistics", "statistics.pt")),
    "curves": Box(0, 3, ("measure_rate_distortion", "blocks.parquet, curves.parquet")),
    "rounds": Box(1, 3, ("prune_iteratively (rounds)", "blocks.parquet, curves.parquet")),
    "allocate": Box(1, 4, ("allocate_sparsity", "allocation.parquet")),
    "masks": Box(1, 5, ("build_masks", "masks.pt, pruned.pt")),
    "finetune": Box(1, 6, ("finetune", "finetuned.pt, history.parquet")),
    "evaluate": Box(2, 6, ("evaluate", "accuracy.parquet")),
    "total": Box(2, 7, ("total_costs", "metrics.parquet, layers.parquet")),
    "benchmark": Box(0, 7, ("benchmark (on request)", "speed.parquet, energy.parquet")),
    "report": Box(1, 7, ("report", "index.html, summary.csv, figures")),
}
PIPELINE_ARROWS = [
    Arrow("index", "check"),
    Arrow("index", "sample"),
    Arrow("index", "dense"),
    Arrow("dense", "count", dashed=True),
    Arrow("dense", "statistics"),
    Arrow("sample", "statistics"),
    Arrow("statistics", "curves"),
    Arrow("curves", "rounds", dashed=True),
    Arrow("curves", "allocate"),
    Arrow("rounds", "allocate", dashed=True),
    Arrow("count", "allocate", dashed=True),
    Arrow("allocate", "masks"),
    Arrow("masks", "finetune"),
    Arrow("masks", "evaluate"),
    Arrow("finetune", "evaluate"),
    Arrow("evaluate", "total"),
    Arrow("total", "report"),
    Arrow("finetune", "benchmark", dashed=True),
    Arrow("benchmark", "report", dashed=True),
]


def draw(boxes: dict[str, Box], arrows: list[Arrow]) -> str:
    """The diagram as SVG, black on white."""
    width = max(box.centre[0] for box in boxes.values()) + WIDTH / 2 + MARGIN
    height = max(box.centre[1] for box in boxes.values()) + HEIGHT / 2 + MARGIN
    return _svg(
        (width, height),
        [
            '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
            ' orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
            *(_arrow(arrow, boxes[arrow.start], boxes[arrow.end]) for arrow in arrows),
            *(_box(box) for box in boxes.values()),
        ],
    )


def matrices() -> str:
    """What compression does to a weight matrix: dense, blocks pruned, low-rank factors."""
    side, tile, rank, step, top = 128, 16, 32, 220, 34
    tiles = [(row, column) for row in range(8) for column in range(8)]
    kept = sorted(tiles, key=lambda at: (37 * at[0] + 23 * at[1] + 29 * at[0] * at[1]) % 61)[: len(tiles) // 2]
    parts = [
        _caption(MARGIN, ("dense W", f"{side} x {side}: {side * side:,} products")),
        _filled(MARGIN, top, side, side),
        _caption(MARGIN + step, ("blocks", f"{len(kept)} of 64 blocks: {len(kept) * tile * tile:,} products")),
        f'<rect x="{MARGIN + step}" y="{top}" width="{side}" height="{side}" fill="none" stroke="black"/>',
        *(_filled(MARGIN + step + tile * column, top + tile * row, tile, tile) for row, column in kept),
        _caption(MARGIN + 2 * step, ("factors B A", f"rank {rank}: {2 * rank * side:,} products")),
        _filled(MARGIN + 2 * step, top, rank, side),
        _filled(MARGIN + 2 * step + rank + 14, top, side, rank),
    ]
    return _svg((3 * step + 2 * MARGIN, top + side + MARGIN), parts)


def _svg(size: tuple[float, float], parts: list[str]) -> str:
    width, height = size
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
            ' font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _caption(x: float, lines: tuple[str, str]) -> str:
    first, second = map(escape, lines)
    return f'<text x="{x:g}" y="12"{_BOLD}>{first}</text><text x="{x:g}" y="27">{second}</text>'


def _filled(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="#4c78a8" stroke="white"/>'


def _arrow(arrow: Arrow, start: Box, end: Box) -> str:
    (x1, y1), (x2, y2) = _edge(start, end), _edge(end, start)
    dashes = ' stroke-dasharray="5 4"' if arrow.dashed else ""
    line = (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="black"{dashes}'
        ' marker-end="url(#head)"/>'
    )
    label = f'<text x="{(x1 + x2) / 2 + 6:.1f}" y="{(y1 + y2) / 2:.1f}">{escape(arrow.label)}</text>'
    return line + (label if arrow.label else "")


def _edge(box: Box, other: Box) -> tuple[float, float]:
    """Where the line to the centre of another box leaves this one."""
    (x, y), (to_x, to_y) = box.centre, other.centre
    across, down = to_x - x, to_y - y
    scale = min(WIDTH / 2 / abs(across) if across else 1, HEIGHT / 2 / abs(down) if down else 1)
    return x + across * scale, y + down * scale


def _box(box: Box) -> str:
    x, y = box.centre
    first = y - (len(box.lines) - 1) * LINE / 2 + 4
    texts = [
        f'<text x="{x:g}" y="{first + number * LINE:g}" text-anchor="middle"'
        f"{_BOLD if not number else ''}>{escape(line)}</text>"
        for number, line in enumerate(box.lines)
    ]
    corner = f'x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}"'
    return f'<rect {corner} width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#f3f3f3" stroke="black"/>' + "".join(texts)


DIAGRAMS: dict[str, Callable[[], str]] = {
    "matrices.svg": matrices,
    "method.svg": partial(draw, METHOD, METHOD_ARROWS),
    "pipeline.svg": partial(draw, PIPELINE, PIPELINE_ARROWS),
}

if __name__ == "__main__":
    for name, diagram in DIAGRAMS.items():
        (IMAGES / name).write_text(diagram(), encoding="utf-8")
