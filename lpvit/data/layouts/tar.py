"""Layout `tar`."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from lpvit.data.layouts import Found, Layout, Split
from lpvit.data.listing import IMAGE_SUFFIXES
from lpvit.data.shards import recognise_shards, require_shards, shards_of
from lpvit.errors import LpvitError, printable

LABELS = (".cls", ".json", ".txt")

Members = dict[str, tarfile.TarInfo]  # of a sample, by suffix


class Tar(Layout):
    """Shards of `<key>.jpg` with `<key>.cls`, `.json` or `.txt` (WebDataset), or of class folders.

    The key ends at the first dot of the name, as WebDataset has it, or at the last if only then a known suffix follows.
    """

    name: Literal["tar"] = "tar"
    image_suffix: str | None = Field(None, description="suffix of the images, where keys have several: `.jpg`")
    label_suffix: str | None = Field(
        None,
        description="suffix of the labels, number or name of a class; null is the first of `.cls`, `.json`, `.txt`",
    )
    label_key: str = Field("label", description="key of the label in `.json`")

    def read(self, root: Path, split: str) -> Split:
        images = [image for shard in require_shards(root, split, ".tar") for image in self._images(root, shard)]
        return Split([path for path, _ in images], [label for _, label in images])

    def watched(self, root: Path, split: str) -> list[str]:
        return shards_of(root, split, ".tar")

    @classmethod
    def recognise(cls, folder: Path) -> Found | None:
        splits = recognise_shards(folder, ".tar")
        return None if splits is None else Found(cls(), folder, *splits)

    def _images(self, root: Path, shard: str) -> Iterator[tuple[str, str]]:
        """Path and label of every image of a shard."""
        try:
            with tarfile.open(root / shard, "r:") as archive:
                samples = self._samples(archive)
                labelled = {key for key, members in samples if self._label_of(members)}
                for key, members in samples:
                    image = self._image_of(f"{root / shard}: {key}", members)
                    if image is None or (key not in labelled and key.rpartition(".")[0] in labelled):
                        continue  # no image, or another one of a sample, such as `<key>.mask.png`
                    label = self._label(archive, key, members, f"{root / shard}: {key}", bool(labelled))
                    yield f"{shard}@{image.offset_data}+{image.size}/{image.name}", label
        except (tarfile.TarError, OSError) as error:
            raise LpvitError(f"{root / shard}: cannot be read as a tar file ({error}); replace it") from None

    def _samples(self, archive: tarfile.TarFile) -> list[tuple[str, Members]]:
        """Key and members of every sample; a key whose suffixes recur begins another."""
        samples: dict[str, list[Members]] = {}
        for member in filter(tarfile.TarInfo.isfile, archive):
            key, suffix = self._parted(member.name)
            of_key = samples.setdefault(key, [])
            lacking = next((members for members in of_key if suffix not in members), None)
            if lacking is None:
                of_key.append(lacking := {})
            lacking[suffix] = member
        return [(key, members) for key, of_key in samples.items() for members in of_key]

    def _parted(self, name: str) -> tuple[str, str]:
        """Key and suffix of a member."""
        folder, slash, file = name.rpartition("/")
        start, _, suffix = file.partition(".")
        if f".{suffix.lower()}" not in (*IMAGE_SUFFIXES, *LABELS, self.image_suffix, self.label_suffix):
            start, _, suffix = file.rpartition(".")
        return f"{folder}{slash}{start}", f".{suffix.lower()}"

    def _image_of(self, place: str, members: Members) -> tarfile.TarInfo | None:
        known = IMAGE_SUFFIXES if self.image_suffix is None else (self.image_suffix,)
        found = [suffix for suffix in members if suffix in known]
        if len(found) > 1:
            raise LpvitError(
                f"{printable(place)}: has images with {' and '.join(found)}; choose by "
                f"'source: {{name: tar, image_suffix: {found[0]}}}'"
            )
        return members[found[0]] if found else None

    def _label_of(self, members: Members) -> str | None:
        """Suffix of the label of a sample."""
        known = LABELS if self.label_suffix is None else (self.label_suffix,)
        return next((suffix for suffix in known if suffix in members), None)

    def _label(self, archive: tarfile.TarFile, key: str, members: Members, place: str, has_labels: bool) -> str:
        suffix = self._label_of(members)
        if suffix is None and not has_labels and "/" in key:  # class folders within the archive
            return key.split("/")[-2]
        if suffix is None:
            expected = self.label_suffix or ".cls"
            raise LpvitError(f"{printable(place)}{expected}: missing, expected the number or name of the image's class")
        content = archive.extractfile(members[suffix])
        text = "" if content is None else content.read().decode(errors="replace").strip()
        if suffix == ".json":
            text = self._json_label(text, f"{printable(place)}{suffix}")
        if not text or "\n" in text or len(text) > 200:
            raise LpvitError(f"{printable(place)}{suffix}: found {text[:50]!r}, expected the number or name of a class")
        return text

    def _json_label(self, text: str, place: str) -> str:
        try:
            content = json.loads(text)
            return str(content[self.label_key])
        except (ValueError, TypeError):
            raise LpvitError(f"{place}: no JSON object with keys; replace it") from None
        except KeyError:
            keys = ", ".join(content)
            raise LpvitError(
                f"{place}: no key '{self.label_key}' among {keys}; choose by 'source: {{name: tar, label_key: ...}}'"
            ) from None
