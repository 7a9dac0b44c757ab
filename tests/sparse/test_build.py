"""The kernel library: whole or built anew, never from other hands; without one, a reason in one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lpvit.errors import LpvitError
from lpvit.sparse import build

SHOW = """
from lpvit.sparse.build import cpu_kernel
print(cpu_kernel().instruction_set, cpu_kernel().reason)
"""


@pytest.fixture(scope="module")
def built(made_once) -> Path:
    """A cache folder with a library in it, built under a umask that hides nothing."""
    made = made_once("kernel", lambda folder: (folder / "found").write_text(kernel_in(folder / "deep/cache", umask=0)))
    if (found := (made / "found").read_text()).startswith("None"):
        pytest.skip(found)
    return made / "deep/cache"


def kernel_in(folder: Path, umask: int = 0o022, **environment: str) -> str:
    """Instruction set and reason that a new process finds, in one line."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env=os.environ | {"LPVIT_CACHE": str(folder)} | environment,
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


def truncated(library: Path) -> None:
    library.write_bytes(library.read_bytes()[:10_000])


def zeroed(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    library.write_bytes(content)


def one_bit(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 3] ^= 1
    library.write_bytes(content)


def empty(library: Path) -> None:
    library.write_bytes(b"")


def text(library: Path) -> None:
    library.write_text("no library")


def folder(library: Path) -> None:
    library.unlink()
    (library / "deep").mkdir(parents=True)


def link(library: Path) -> None:
    library.rename(library.with_name("elsewhere.so"))
    library.symlink_to("elsewhere.so")


@pytest.mark.parametrize("kernels_too", [False, True])
@pytest.mark.parametrize("damage", [truncated, zeroed, one_bit, empty, text, folder, link])
def test_a_damaged_file_is_built_anew(damage, kernels_too, built, tmp_path, monkeypatch):
    """The build itself is replaced by copies of good files, which take no time."""
    cache = shutil.copytree(built, tmp_path / "cache")
    (library,), (kernels,) = cache.glob("*.so"), cache.glob("*.o")
    good, builds = {path: path.read_bytes() for path in (library, kernels)}, []

    def rebuilt(_compiler, temporary, _caller, known):
        builds.append(known)
        for path, content in good.items():
            (temporary / path.name).write_bytes(content)
            (temporary / path.name).chmod(0o700)
        return known or temporary / kernels.name, temporary / library.name

    monkeypatch.setenv("LPVIT_CACHE", str(cache))
    monkeypatch.setattr(build, "_build", rebuilt)
    damage(library)  # before this process maps it: what is mapped may not be cut
    if kernels_too:
        damage(kernels)
    for _ in range(2):
        build._loaded_library()
    assert {path: path.read_bytes() for path in good} == good
    assert not library.is_symlink()
    assert not kernels.is_symlink()
    assert not list(cache.glob(".*"))
    assert builds == [None if kernels_too else kernels]


def test_kernels_are_compiled_for_the_first_caller_alone(built, tmp_path, monkeypatch):
    cache = shutil.copytree(built, tmp_path / "cache")
    (kernels,) = cache.glob("*.o")
    inode, compiled = kernels.stat().st_ino, []
    compile_all = build._compile

    def noted(commands, folder):
        compiled.extend(commands)
        compile_all(commands, folder)

    monkeypatch.setenv("LPVIT_CACHE", str(cache))
    monkeypatch.setattr(build, "_compile", noted)
    build._loaded_library(replace(build._BY_TORCH, version="another"))  # as after an edit of its source
    assert compiled == ["caller.o"]
    assert kernels.stat().st_ino == inode
    assert len(list(cache.glob("*.so"))) == 2


def test_a_library_is_built_for_its_user_alone_whatever_the_umask(built):
    for path in (built.parent, built, *built.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    assert sorted(path.suffix for path in built.iterdir()) == [".o", ".so"]


def test_a_library_that_is_whole_is_loaded_and_not_built_again(built, monkeypatch):
    monkeypatch.setenv("LPVIT_CACHE", str(built))
    monkeypatch.setattr(build, "_build", None)
    build._loaded_library()


def world_writable(cache: Path) -> None:
    cache.chmod(0o777)


def group_writable_library(cache: Path) -> None:
    next(cache.glob("*.so")).chmod(0o760)


def group_writable_kernels(cache: Path) -> None:
    next(cache.glob("*.so")).unlink()
    next(cache.glob("*.o")).chmod(0o660)


def world_writable_parent(cache: Path) -> None:
    cache.parent.chmod(0o777)


def of_another(cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(next(cache.glob("*.so")), 12345, -1)


def folder_of_another(cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(cache, 12345, -1)


@pytest.mark.parametrize(
    "opened",
    [
        *(world_writable, group_writable_library, group_writable_kernels),
        *(world_writable_parent, of_another, folder_of_another),
    ],
)
def test_nothing_is_loaded_that_another_user_could_have_written(opened, built, tmp_path, monkeypatch):
    cache = shutil.copytree(built, tmp_path / "cache")
    monkeypatch.setenv("LPVIT_CACHE", str(cache))
    opened(cache)
    with pytest.raises(build._BuildError, match=r"(another|every) user may .*LPVIT_CACHE"):
        build._loaded_library()


COMPILERS = {
    "is no program": ("text", "no program at all", "cannot be run"),
    "is a folder": ("folder", None, "no C\\+\\+ compiler"),
    "prints garbage": ("noise", "#!/bin/sh\nhead -c 1000 /dev/urandom; exit 1\n", "the C\\+\\+ compiler failed"),
    "writes no UTF-8": ("latin", "#!/bin/sh\nprintf 'error: \\351\\377' >&2; exit 1\n", "failed: error: \\ufffd"),
    "makes nothing": ("lazy", "#!/bin/sh\nexit 0\n", "No such file"),
    "makes garbage": (
        "liar",
        '#!/bin/sh\nfor last; do :; done; head -c 9000 /dev/urandom > "$last"\n',
        "cannot be kept",
    ),
    "has a quote": ("quo'te", "#!/bin/sh\nexit 3\n", "no message"),
    "has a space": ("a b", "#!/bin/sh\nexit 3\n", "no message"),
}


@pytest.mark.parametrize("compiler", COMPILERS)
def test_without_a_compiler_that_works_there_is_a_reason_in_one_line(compiler, tmp_path, monkeypatch):
    name, content, reason = COMPILERS[compiler]
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # one of them writes to what it takes for a file, `--version`
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("LPVIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(build._BuildError, match=reason) as error:
        build._loaded_library()
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob(".*"))


@pytest.mark.parametrize("command", ["'g++", "no-such-compiler", "", "   "])
def test_a_command_that_names_no_compiler_is_refused(command, monkeypatch):
    monkeypatch.setenv("CXX", command)
    with pytest.raises(build._BuildError, match=r"compiler"):
        build._compiler()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing_for_the_one_after_it(number, tmp_path, monkeypatch):
    compiler = tmp_path / "slow"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 30\n')
    compiler.chmod(0o755)
    cache = tmp_path / "cache"
    monkeypatch.setenv("LPVIT_CACHE", str(cache))
    monkeypatch.setenv("CXX", str(compiler))
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & ignores it
    process = subprocess.Popen([sys.executable, "-c", f"{heard}\n{SHOW}"], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(cache.glob(".build_*")):
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() != 0
    compiler.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(build._BuildError, match="No such file"):
        build._loaded_library()
    assert list(cache.iterdir()) == []


def test_an_unknown_instruction_set_is_refused_in_one_line(monkeypatch):
    build.cpu_kernel.cache_clear()
    monkeypatch.setenv("LPVIT_INSTRUCTION_SET", "avx1024")
    with pytest.raises(LpvitError, match=r"LPVIT_INSTRUCTION_SET: 'avx1024' is unknown; leave it out or use avx512"):
        build.cpu_kernel()
