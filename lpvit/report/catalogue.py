"""The figures of `lpvit.report.figures` and their inputs, read from their files.

None is imported, so a dry run is fast.
"""

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FigureFile:
    """Metadata in the file of a figure.

    Attributes:
        title: Heading on the page and label in Snakemake's report.
        category: In Snakemake's report.
        caption: Explanation.
        needs: Parameters of its ``draw``: artifacts and facts.
        takes: Optional ones, with a default.
    """

    title: str
    category: str
    caption: str
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


def figure_files(folder: Path = Path(__file__).parent / "figures") -> dict[str, FigureFile]:
    """Name of every figure -> its metadata, in alphabetical order."""
    return {file.stem: _read(ast.parse(file.read_text())) for file in sorted(folder.glob("[!_]*.py"))}


def _read(tree: ast.Module) -> FigureFile:
    assigned = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    title, category, caption = (ast.literal_eval(assigned[name]) for name in ("TITLE", "CATEGORY", "CAPTION"))
    (draw,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "draw")
    names = [argument.arg for argument in draw.args.args]
    needed = len(names) - len(draw.args.defaults)
    return FigureFile(title, category, caption, tuple(names[:needed]), tuple(names[needed:]))
