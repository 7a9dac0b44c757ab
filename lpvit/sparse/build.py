"""The CPU kernel: compiled on first use, kept in a cache folder, loaded into the process.

The operator's C++ side uses torch's stable ABI and the arithmetic no torch at all, so that a build takes seconds.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

_logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
_TORCH = Path(torch.__file__).parent
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden")
_OPERATOR_FLAGS = ("-isystem", str(_TORCH / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000")  # torch 2.11


@dataclass(frozen=True)
class InstructionSet:
    """How kernel.cpp is compiled for one set of vector instructions.

    Attributes:
        name: As in the kernel's name.
        flags: That let the compiler use it.
        lanes: Floats in a vector.
        tile_tokens: Tokens that, times two vectors of sums, fit the registers.
        bfloat16: Whether the kernel is one for bfloat16, instead of float32.
    """

    name: str
    flags: tuple[str, ...]
    lanes: int
    tile_tokens: int
    bfloat16: bool = False

    def definitions(self) -> tuple[str, ...]:
        return (
            f"-DLPVIT_ISA={self.name}",
            f"-DLPVIT_LANES={self.lanes}",
            f"-DLPVIT_TILE_TOKENS={self.tile_tokens}",
            *(["-DLPVIT_BF16"] if self.bfloat16 else []),
        )


_X86 = ("-mfma", "-mprfchw")
_BF16 = ("-mavx512f", "-mavx512vl", "-mavx512bf16")
INSTRUCTION_SETS = {
    "x86_64": (
        InstructionSet("avx512_bf16", (*_X86, *_BF16), lanes=16, tile_tokens=14, bfloat16=True),
        InstructionSet("avx512", (*_X86, "-mavx512f"), lanes=16, tile_tokens=14),
        InstructionSet("avx2", (*_X86, "-mavx2"), lanes=8, tile_tokens=6),
        InstructionSet("sse", (), lanes=4, tile_tokens=6),
    ),
    "aarch64": (InstructionSet("neon", (), lanes=4, tile_tokens=10),),
}


@dataclass(frozen=True)
class CpuKernel:
    """The kernels of this process: the instruction set that they use, or why there are none.

    Attributes:
        instruction_set: Of the kernel for float32; None if there is none.
        bfloat16: Of the kernel for bfloat16; None if there is none.
        reason: Why there are none.
    """

    instruction_set: str | None
    bfloat16: str | None = None
    reason: str = ""


@functools.cache
def cpu_kernel() -> CpuKernel:
    """Builds the kernel unless the cache has it, and registers it as CPU implementation of the operator.

    ``LPVIT_INSTRUCTION_SET`` names the instruction set to use; by default it is the best that the CPU has.
    """
    try:
        library = ctypes.CDLL(str(_built_library()))
    except _BuildError as error:
        return CpuKernel(None, reason=str(error))
    wanted = os.environ.get("LPVIT_INSTRUCTION_SET", "")
    library.lpvit_choose_kernel.restype = library.lpvit_bfloat16_kernel.restype = ctypes.c_char_p
    chosen = library.lpvit_choose_kernel(wanted.encode())
    if not chosen:
        return CpuKernel(None, reason=f"LPVIT_INSTRUCTION_SET: no '{wanted}' here")
    bfloat16 = library.lpvit_bfloat16_kernel()
    return CpuKernel(chosen.decode(), bfloat16.decode() if bfloat16 else None)


def cache_folder() -> Path:
    """``LPVIT_CACHE``, else ``lpvit`` in the user's cache folder."""
    if folder := os.environ.get("LPVIT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lpvit"


class _BuildError(Exception):
    """Why there is no kernel, in one line."""


def _built_library() -> Path:
    """The shared library for these sources, this compiler and this torch; built if it is not in the cache.

    Processes that build at once do so apart, and each puts its result in place by one rename.
    """
    compiler = _compiler()
    library = cache_folder() / f"block_sparse_{_digest(compiler)}.so"
    if library.exists():
        return library
    _logger.warning("compiling the block-sparse kernel for this machine, once, some 20 s: %s", library.parent)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="build_") as folder:
            _build(compiler, Path(folder)).replace(library)
    except OSError as error:
        raise _BuildError(f"{library.parent}: the kernel cannot be built there ({error}); set LPVIT_CACHE") from None
    return library


def _compiler() -> tuple[str, ...]:
    command = shlex.split(os.environ.get("CXX", "c++"))
    path = shutil.which(command[0]) if command else None
    if path is None:
        raise _BuildError(f"no C++ compiler '{' '.join(command)}'; install g++ or clang++, or name one in CXX")
    return (path, *command[1:])


def _digest(compiler: tuple[str, ...]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    settings = repr((compiler, version, FLAGS, _OPERATOR_FLAGS, _instruction_sets(), torch.__version__))
    digest = hashlib.sha256(settings.encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _instruction_sets() -> tuple[InstructionSet, ...]:
    machine = platform.machine()
    if machine not in INSTRUCTION_SETS:
        raise _BuildError(f"no kernel for {machine}; there is one for {' and '.join(INSTRUCTION_SETS)}")
    return INSTRUCTION_SETS[machine]


def _build(compiler: tuple[str, ...], folder: Path) -> Path:
    """Compiles the sources side by side and links them; the library in ``folder``."""
    common = [*compiler, *FLAGS, "-c"]
    commands = {"operator.o": [*common, *_OPERATOR_FLAGS, str(SOURCES / "operator.cpp")]}
    for instruction_set in _instruction_sets():
        flags = (*instruction_set.flags, *instruction_set.definitions())
        commands[f"{instruction_set.name}.o"] = [*common, *flags, str(SOURCES / "kernel.cpp")]
    compilations = [_start([*command, "-o", str(folder / name)]) for name, command in commands.items()]
    for compilation in compilations:
        _finish(compilation)
    library = folder / "block_sparse.so"
    objects = [str(folder / name) for name in commands]
    _finish(_start([*compiler, "-shared", *objects, f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-o", str(library)]))
    return library


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, messages = process.communicate()
    if process.returncode:
        errors = [line for line in messages.splitlines() if "error" in line] or messages.splitlines() or ["no message"]
        raise _BuildError(f"the C++ compiler failed: {errors[0]}")
