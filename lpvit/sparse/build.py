"""The CPU kernel: compiled on first use, kept in a cache folder, loaded into the process.

The operator's C++ code uses torch's stable ABI and the kernels no torch at all, so a build takes seconds, and other
engines can call them. The kernels are compiled once, into an object that is linked into every caller's library.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from lpvit.errors import LpvitError
from lpvit.store.artifacts import partial_suffix, remove_leftovers
from lpvit.store.digest import BLANK, seal, verify

_logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
_KERNEL, _ATTENTION = "kernel.cpp", "attention.cpp"  # compiled for every instruction set
_TORCH = Path(torch.__file__).parent
# The last two keep all sums of a tile in registers.
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-fira-region=all", "-fno-schedule-insns")


@dataclass(frozen=True)
class InstructionSet:
    """How kernel.cpp and attention.cpp are compiled for one set of vector instructions.

    Attributes:
        name: As in the kernel's name.
        flags: Compiler flags that enable it.
        lanes: Sums per vector.
        tile_tokens: Tokens for which two vectors of sums each fit the registers.
        arithmetic: Type of the products: float32, bfloat16 or int8.
        attends: Whether attention is faster with it than in float32.
    """

    name: str
    flags: tuple[str, ...]
    lanes: int
    tile_tokens: int
    arithmetic: str = "float32"
    attends: bool = True

    def definitions(self) -> tuple[str, ...]:
        return (
            f"-DLPVIT_ISA={self.name}",
            f"-DLPVIT_LANES={self.lanes}",
            f"-DLPVIT_TILE_TOKENS={self.tile_tokens}",
            f'-DLPVIT_ARITHMETIC="{self.arithmetic}.h"',
            f'-DLPVIT_ATTENTION="attention_{"int8" if self.arithmetic == "int8" else "copied"}.h"',
        )

    def sources(self) -> tuple[str, ...]:
        return (_KERNEL, _ATTENTION) if self.attends else (_KERNEL,)


_X86 = ("-mfma", "-mprfchw")
_AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512bw")
INSTRUCTION_SETS = {
    "x86_64": (
        InstructionSet("avx512_vnni", (*_X86, *_AVX512, "-mavx512vnni"), 16, 14, "int8"),
        InstructionSet("avx512_vnni_bf16", (*_X86, *_AVX512, "-mavx512vnni", "-mavx512bf16"), 16, 14, "int8"),
        InstructionSet("avx512_bf16", (*_X86, *_AVX512, "-mavx512bf16"), 16, 14, "bfloat16"),
        InstructionSet("avx512", (*_X86, "-mavx512f"), 16, 14),
        InstructionSet("avx_vnni", (*_X86, "-mavx2", "-mavxvnni"), 8, 6, "int8"),
        InstructionSet("avx2_int8", (*_X86, "-mavx2"), 8, 4, "int8", attends=False),
        InstructionSet("avx2", (*_X86, "-mavx2"), 8, 6),
        InstructionSet("sse_int8", (), 4, 4, "int8", attends=False),
        InstructionSet("sse", (), 4, 6),
    ),
    "aarch64": (
        InstructionSet("neon_dot", ("-march=armv8.2-a+dotprod",), 4, 10, "int8"),
        InstructionSet("neon_int8", (), 4, 4, "int8", attends=False),
        InstructionSet("neon", (), 4, 10),
    ),
}


@dataclass(frozen=True)
class Caller:
    """A library that calls the kernels, and its source.

    Attributes:
        source: File, compiled apart from the kernels.
        version: Of the package for which the library is built.
        flags: Compiler flags of the source.
        libraries: Linked libraries.
    """

    source: str
    version: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...]


_BY_TORCH = Caller(
    "operator.cpp",
    torch.__version__,
    ("-isystem", str(_TORCH / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000"),  # torch 2.11
    (f"-L{_TORCH / 'lib'}", "-ltorch_cpu"),
)


@dataclass(frozen=True)
class CpuKernel:
    """The kernels of this process: their instruction set, or the reason why there are none.

    Attributes:
        instruction_set: Of the kernel for float32; None if there is none.
        bfloat16: Of the kernel for bfloat16; None if there is none.
        int8: Of the kernel for int8; None if there is none.
        int8_attention: Whether it includes attention.
        reason: Why there are none.
    """

    instruction_set: str | None
    bfloat16: str | None = None
    int8: str | None = None
    int8_attention: bool = False
    reason: str = ""


@functools.cache
def cpu_kernel() -> CpuKernel:
    """Builds the kernel unless the cache has it, and registers it as CPU implementation of the operator.

    ``LPVIT_INSTRUCTION_SET`` names the instruction set to use; by default the best that the CPU supports.

    Raises:
        LpvitError: The name is unknown.
    """
    wanted = os.environ.get("LPVIT_INSTRUCTION_SET", "")
    known = [one.name for sets in INSTRUCTION_SETS.values() for one in sets if one.arithmetic == "float32"]
    known += ["avx_vnni"]  # avx2, except for int8
    if wanted not in ("", *known):
        raise LpvitError(f"LPVIT_INSTRUCTION_SET: {wanted!a} is unknown; leave it out or use {', '.join(known)}")
    try:
        library, _ = _loaded_library()
    except _BuildError as error:
        return CpuKernel(None, reason=str(error))
    for function in (library.lpvit_choose_kernel, library.lpvit_bfloat16_kernel, library.lpvit_int8_kernel):
        function.restype = ctypes.c_char_p
    chosen = library.lpvit_choose_kernel(wanted.encode())
    if not chosen:
        return CpuKernel(None, reason=f"LPVIT_INSTRUCTION_SET: no '{wanted}' here")
    library.lpvit_has_int8_attention.restype = ctypes.c_bool
    bfloat16, int8 = library.lpvit_bfloat16_kernel(), library.lpvit_int8_kernel()
    names = (chosen.decode(), bfloat16.decode() if bfloat16 else None, int8.decode())
    return CpuKernel(*names, int8_attention=library.lpvit_has_int8_attention())


def build_obstacle() -> str:
    """Why no kernel can be built and kept on this machine; empty if one can. Builds none."""
    try:
        _places(_compiler(), _BY_TORCH)
    except (_BuildError, OSError, RuntimeError) as error:
        return str(error)
    return ""


def openvino_library() -> Path:
    """The library with the kernels for the installed OpenVINO, without torch; built unless it is cached.

    Raises:
        LpvitError: It cannot be built.
    """
    import openvino

    package = Path(openvino.__file__).parent
    libraries = (*(package / "libs").glob("libopenvino.so.*"), *(package / "libs").glob("libtbb.so.*"))
    caller = Caller(
        "openvino.cpp",
        openvino.__version__,
        ("-isystem", str(package / "include")),
        tuple(str(library) for library in libraries),
    )
    try:
        return _loaded_library(caller)[1]
    except _BuildError as error:
        raise LpvitError(f"the library for OpenVINO: {error}") from None


def cache_folder() -> Path:
    """``LPVIT_CACHE``, else ``lpvit`` in the user's cache folder."""
    if folder := os.environ.get("LPVIT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpvit"


class _BuildError(Exception):
    """The reason why there is no kernel, in one line."""


def _loaded_library(caller: Caller = _BY_TORCH) -> tuple[ctypes.CDLL, Path]:
    """The library for these sources, this compiler and this caller, and its file; built unless it is cached.

    Processes that build at the same time do so in separate folders, and each stores its result with one rename.
    """
    compiler = _compiler()
    try:
        kernels, library = _places(compiler, caller)
        folder = library.parent
        if _is_whole(library):
            return ctypes.CDLL(str(library)), library
        remove_leftovers(folder)
        known = kernels if _is_whole(kernels) else None
        if known is None:
            _logger.warning("compiling the block-sparse kernel for this machine, once, some 40 s: %s", folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build_", suffix=partial_suffix()) as temporary:
            Path(temporary).chmod(0o700)
            used, built = _build(compiler, Path(temporary), caller, known)
            loaded = ctypes.CDLL(str(built))  # a library that cannot be loaded is not kept
            if known is None:
                used.replace(kernels)
            built.replace(library)
        return loaded, library
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder, or circular links
        raise _BuildError(
            f"the kernel cannot be kept and loaded ({error}); set LPVIT_CACHE to another folder"
        ) from None


def _places(compiler: tuple[str, ...], caller: Caller) -> tuple[Path, Path]:
    """Paths of the object with the kernels, and of the caller's library."""
    folder = _private_folder()
    version = _finish(_start([*compiler, "--version"]))
    digest = hashlib.sha256(repr((compiler, version, FLAGS, _instruction_sets())).encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix == ".h" or source.name in (_KERNEL, _ATTENTION):
            digest.update(source.read_bytes())
    kernels = folder / f"kernels_{digest.hexdigest()[:16]}.o"
    digest.update(repr(caller).encode() + (SOURCES / caller.source).read_bytes())
    return kernels, folder / f"block_sparse_{digest.hexdigest()[:16]}.so"


def _private_folder() -> Path:
    """The cache folder, created if needed; its content is executed, so no other user may write there."""
    folder = cache_folder().resolve()
    for part in (*reversed(folder.parents), folder):
        if not part.exists():
            part.mkdir(0o700, exist_ok=True)
            part.chmod(0o700)  # for any umask
        elif part != folder and part.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise _BuildError(f"{part}: every user may replace the kernel below it; set LPVIT_CACHE to another folder")
    _require_own(folder)
    return folder


def _require_own(path: Path) -> None:
    found = path.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _BuildError(
            f"{path}: another user may write to it, so no kernel is loaded from there; "
            "set LPVIT_CACHE to another folder, or change it with chown and chmod go-w"
        )


def _is_whole(built: Path) -> bool:
    """Whether a built file is complete and unchanged. A folder in its place is removed; a file will be replaced."""
    if built.is_symlink() or not built.exists():
        return False
    _require_own(built)
    try:
        verify(built)
    except LpvitError:
        if built.is_dir():
            shutil.rmtree(built)
        return False
    return True


def _compiler() -> tuple[str, ...]:
    text = os.environ.get("CXX", "c++")
    try:
        command = [text] if shutil.which(text) else shlex.split(text)
    except ValueError as error:  # an unclosed quote
        raise _BuildError(f"CXX: {text!a} is no command ({error}); name a C++ compiler") from None
    path = shutil.which(command[0]) if command else None
    if path is None:
        raise _BuildError(f"no C++ compiler '{' '.join(command)}'; install g++ or clang++, or name one in CXX")
    return (path, *command[1:])


def _instruction_sets() -> tuple[InstructionSet, ...]:
    machine = platform.machine()
    if machine not in INSTRUCTION_SETS:
        raise _BuildError(f"no kernel for {machine}; there is one for {' and '.join(INSTRUCTION_SETS)}")
    return INSTRUCTION_SETS[machine]


def _build(compiler: tuple[str, ...], folder: Path, caller: Caller, kernels: Path | None) -> tuple[Path, Path]:
    """The object with the kernels, compiled in parallel with the caller unless given, and the library."""
    common = [*compiler, *FLAGS, "-c"]
    of_kernels = {} if kernels else _kernel_commands(common)
    _compile({"caller.o": [*common, *caller.flags, str(SOURCES / caller.source)], **of_kernels}, folder)
    if kernels is None:
        objects = [str(folder / name) for name in of_kernels]
        kernels = _linked([*compiler, "-r", "-nostdlib", *objects], folder / "kernels.o")
    # The caller is linked first: of a function defined several times, its version for any CPU must be kept.
    objects = [str(folder / "caller.o"), str(kernels)]
    library = _linked([*compiler, "-shared", *objects, *caller.libraries], folder / "block_sparse.so")
    library.chmod(0o700)
    return kernels, library


def _kernel_commands(common: list[str]) -> dict[str, list[str]]:
    """Commands that compile the kernels, by object name."""
    commands = {}
    for instruction_set in _instruction_sets():
        flags = (*instruction_set.flags, *instruction_set.definitions())
        for source in instruction_set.sources():
            commands[f"{instruction_set.name}_{source}.o"] = [*common, *flags, str(SOURCES / source)]
    return commands


def _compile(commands: dict[str, list[str]], folder: Path) -> None:
    """Runs commands in parallel, each of which creates an object in ``folder``."""
    compilations: list[subprocess.Popen[bytes]] = []
    cores = len(os.sched_getaffinity(0))
    try:
        for number, (name, command) in enumerate(commands.items()):
            if number >= cores:
                _finish(compilations[number - cores])
            compilations.append(_start([*command, "-o", str(folder / name)]))
        for compilation in compilations[-cores:]:
            _finish(compilation)
    finally:
        for compilation in compilations:  # after a failure or an interrupt
            compilation.kill()
            compilation.wait()


def _linked(command: list[str], target: Path) -> Path:
    """Links ``target`` with a command, and seals it."""
    _finish(_start([*command, "-o", str(target)]))
    with target.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(BLANK.encode())  # loaders and linkers ignore bytes after the end of their tables
    seal(target)
    return target


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=0o077
        )
    except (OSError, ValueError) as error:
        raise _BuildError(f"the C++ compiler cannot be run ({error}); name one in CXX") from None


def _finish(process: subprocess.Popen[bytes]) -> str:
    """Output of a process that has succeeded."""
    output, _ = process.communicate()
    text = output.decode(errors="replace")  # it may print any bytes
    if process.returncode:
        errors = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["no message"]
        raise _BuildError(f"the C++ compiler failed: {errors[0]}")
    return text
