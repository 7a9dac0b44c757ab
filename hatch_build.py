"""What the build of the package adds to pyproject.toml: the README as it can be read outside of the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LOCAL = r"\((?!https?:|mailto:)[^)]*\)"  # target of a link into the repository


def without_local_links(markdown: str) -> str:
    """Drops images of the repository, and turns links into it into plain text."""
    return re.sub(rf"\[([^\]]*)\]{LOCAL}", r"\1", re.sub(rf"!\[[^\]]*\]{LOCAL}\n*", "", markdown))


class Readme(MetadataHookInterface):
    """Sets the long description."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = without_local_links((Path(self.root) / "README.md").read_text(encoding="utf-8"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
