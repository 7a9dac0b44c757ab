"""Files of the pipeline: written atomically, with `.pt` payloads that carry their kind and format."""

import errno
import os
import platform
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lpvit import __version__
from lpvit.errors import LpvitError, one_line
from lpvit.store.digest import BLANK, seal, verify
from lpvit.store.holding import require_held

FORMAT_VERSION = 1  # of payloads, where their owner says no other

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no space
    *(errno.EACCES, errno.EPERM, errno.EROFS),  # no permission
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),  # the path is occupied
    errno.ENAMETOOLONG,
)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Removes partial files of killed processes in a folder and its subfolders.

    The name of a partial file contains its process and machine. Only that machine can check whether the process still
    runs, so files of other machines are kept.

    Args:
        folder: Need not exist.

    Returns:
        The removed files.
    """
    removed = []
    for partial in list(Path(folder).rglob(".*.partial")):
        process, _, host = partial.name.split(".")[-2].partition("@")
        if host == _host() and process.isdigit() and not _runs(int(process)):
            with suppress(OSError):  # another run may do the same
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
                removed.append(partial)
    return removed


def partial_suffix() -> str:
    """Suffix of this process's partial files; their names start with a dot."""
    return f".{os.getpid()}@{_host()}.partial"


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; it replaces ``path`` only on success.

    Raises:
        LpvitError: The disk is full, the folder cannot be written, or another run took it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{partial_suffix()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        require_held()
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        if not _is_about_the_disk(error) and getattr(error, "filename", None) != str(partial):
            raise
        raise LpvitError(
            f"{path}: cannot be written ({_reason(error)}); free some space or choose another folder"
        ) from None
    finally:
        with suppress(OSError):  # renamed already, or never created
            partial.unlink()


def write_text(text: str, path: str | Path) -> None:
    """Writes a text file atomically.

    Raises:
        LpvitError: The disk is full or the folder cannot be written.
    """
    with replace_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save(
    payload: dict[str, Any],
    path: str | Path,
    kind: str,
    provenance: dict[str, Any] | None = None,
    version: int = FORMAT_VERSION,
) -> None:
    """Writes tensors and plain values as a `.pt` file that carries its kind, format version and origin.

    Args:
        payload: Tensors, numbers, strings, and lists, tuples or dicts of them (loadable with ``weights_only``).
        path: Target file.
        kind: Content, for example ``dense``; `load` checks it.
        provenance: Origin, for information.
        version: Of the form of the payload.
    """
    import torch

    header = {"kind": kind, "format": version, "lpvit": __version__, "torch": str(torch.__version__)}
    with replace_atomically(path) as partial:
        torch.save({**header, "provenance": provenance or {}, "payload": payload}, partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.comment = BLANK.encode()
        seal(partial)


def load(path: str | Path, kind: str, form: Any = dict[str, Any]) -> Any:
    """Reads the payload that `save` wrote, on the CPU.

    Args:
        path: The file.
        kind: Expected content.
        form: Type of the payload, for pydantic; tensors in it are ``InstanceOf[Tensor]``. Where there are several
            versions, version -> type of the payload, the present one first.

    Raises:
        LpvitError: The file is missing, damaged, of another kind or of another format version, or its payload does
            not match the form.
    """
    import torch

    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, payload = (content["kind"], content["format"]), content["payload"]
    except Exception as error:  # torch raises different types for different damage
        raise LpvitError(
            f"{path}: cannot be read as an artifact of lpvit ({type(error).__name__}); delete it and rerun"
        ) from None
    forms = form if isinstance(form, Mapping) else {FORMAT_VERSION: form}
    versions = [version for version in forms if found == (kind, version)]
    if not versions:
        raise LpvitError(
            f"{path}: holds '{one_line(found[0])}' in format {one_line(found[1])}, "
            f"expected '{kind}' in format {' or '.join(map(str, forms))}; delete it and rerun"
        )
    try:
        return TypeAdapter(forms[versions[0]]).validate_python(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = one_line(".".join(map(str, first["loc"])) or "payload")
        raise LpvitError(f"{path}: is no '{kind}' ({place}: {first['msg']}); delete it and rerun") from None


def header(path: str | Path) -> dict[str, Any]:
    """Header of a `.pt` file: ``kind``, ``format``, ``lpvit``, ``torch`` and ``provenance``.

    Raises:
        LpvitError: The file is missing, damaged or no artifact of lpvit.
    """
    import torch

    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name: content[name] for name in ("kind", "format", "lpvit", "torch", "provenance")}
    except Exception as error:  # torch raises different types for different damage
        raise LpvitError(f"{path}: cannot be read as an artifact of lpvit ({type(error).__name__})") from None


def _host() -> str:
    return platform.node().partition(".")[0]


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user; or no number of a process
        pass
    return True


def _is_about_the_disk(error: OSError | RuntimeError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)  # torch.save on a full disk


def _reason(error: OSError | RuntimeError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no space left on device"
