"""Compiling C++: what the libraries that keras-norms builds have in common.

Objects are kept by what went into them, so that a change of one source compiles one file, and a
library takes the place of the old one by a rename.
"""

import concurrent.futures
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: setup.py and the Makefile need neither Keras nor TensorFlow
    import library
else:
    from keras_norms import library

COMMON = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-DNDEBUG", "-I."),
    *("-ffunction-sections", "-fdata-sections"),  # the linker drops what a library does not use
)
TARGETS = {  # one kernel source, compiled once for each; the processor chooses at run time
    "kernels_avx2.cc": ("-march=x86-64-v3",),
    "kernels_avx512.cc": ("-march=x86-64-v4",),
}
X86 = ("x86_64", "AMD64")
LINK = ("-shared", "-Wl,--no-undefined", "-Wl,--gc-sections", "-Wl,-s")
COMPILER_CURE = (
    "Install one (Debian and Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`) "
    "or name one in the variable CXX, then run `keras-norms build`."
)


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why and what to do."""


class Unit(NamedTuple):
    """A source and its flags; `key` names all that goes into the object."""

    source: Path  # relative to the folder that holds custom_ops
    flags: tuple[str, ...]
    key: str
    contents: bytes  # of the source and what it includes, when the key was made
    architecture: str | None = None  # of a GPU, for which NVRTC compiles; else the C++ compiler

    @property
    def stem(self) -> str:
        """custom_ops/tf/x.cc: tf-x"""
        parts = self.source.with_suffix("").parts[1:]
        return "-".join(parts if self.architecture is None else (*parts, self.architecture))


def find_compiler() -> list[str]:
    """The command of a C++ compiler: `$CXX`, g++ or clang++."""
    if named := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(named[0]):
            return named
        raise BuildError(f"CXX names no command that exists. Received: {named[0]}. {COMPILER_CURE}")
    for name in ("g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError(f"There is no C++ compiler (g++, clang++) on the PATH. {COMPILER_CURE}")


def compiler_version(compiler: Sequence[str]) -> str:
    """The first line of `compiler --version`."""
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] or " ".join(compiler)


def core_units(compiler: Sequence[str], machine: str) -> list[Unit]:
    """The kernels; every library has them, and objects of the same compiler are shared."""
    root = library.sources_dir().parent
    by = compiler_version(compiler)
    return [
        unit_of(root, source, (*COMMON, *TARGETS.get(source.name, ())), by)
        for source in sorted(root.glob("custom_ops/core/*.cc"))
        if source.name not in TARGETS or machine in X86
    ]


def unit_of(
    root: Path, source: Path, flags: Sequence[str], *key: str, neutral: Sequence[str] | None = None
) -> Unit:
    """The unit of a source.

    Args:
        root: the folder that holds custom_ops.
        source, flags: of the unit.
        key: what else the object depends on, as the compiler.
        neutral: the flags as they go into the key, where they hold paths of this environment:
            another one shares the object.
    """
    held = contents(root, source)
    total = hashlib.sha256("\0".join((*key, *(neutral or flags))).encode())
    total.update(held)
    return Unit(source.relative_to(root), tuple(flags), total.hexdigest()[:16], held)


def contents(root: Path, source: Path) -> bytes:
    """A source and all that it includes, with their names."""
    files = [root / source, *sorted(included(root / source, root))]
    return b"".join(f"\0{file.relative_to(root)}\0".encode() + file.read_bytes() for file in files)


def included(source: Path, root: Path, seen: frozenset[Path] = frozenset()) -> set[Path]:
    """Our own files that `source` includes, directly or not."""
    found: set[Path] = set()
    text = source.read_text(encoding="utf-8")
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        file = next((f for f in (root / name, source.parent / name) if f.is_file()), None)
        if file and file not in seen:
            found |= {file} | included(file, root, seen | found | {file})
    return found


def check_jobs(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise BuildError(f"`jobs` must be at least 1. Received: {jobs}.")


def default_jobs() -> int:
    """TensorFlow's headers take over 1 GB a compiler."""
    jobs = min(4, len(os.sched_getaffinity(0)))
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = int(re.search(r"MemAvailable:\s*(\d+)", file.read())[1])  # in KiB
    except (OSError, TypeError):
        return jobs
    return max(1, min(jobs, free // 1_500_000))


def objects_dir() -> Path:
    """Where objects are kept: the checkout's build folder, else the cache."""
    if named := os.environ.get("KERAS_NORMS_OBJECTS"):
        return Path(named).absolute()  # compilers run in another folder
    root = library.sources_dir().parent
    if (root / ".git").exists() and os.access(root, os.W_OK):
        return root / "build" / "objects"
    return library.cache_dir() / "objects"


def run(command: Sequence[str], what: str, missing: str | None = None) -> None:
    """Runs a compiler in the folder that holds custom_ops, so that no object names that folder.

    Args:
        command, what: to run, and what that is.
        missing: the cure where the linker finds something not.
    """
    root = library.sources_dir().parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode == 0:
        return
    output = done.stderr + done.stdout
    if "Killed" in output or done.returncode == -9:
        cure = "The compiler ran out of memory: try `keras-norms build --jobs 1`."
    elif re.search(r"x86-64-v\d|unrecognized|unknown argument|-std=c\+\+17", output):
        cure = "The compiler is too old: name g++ >= 11 or clang++ >= 12 in the variable CXX."
    elif missing and ("cannot find" in output or "undefined reference" in output):
        cure = missing
    else:
        cure = "Try another compiler by the variable CXX. keras-norms works without the op."
    lines = output.strip().splitlines()
    shown = lines if len(lines) <= 30 else [*lines[:30], f"... ({len(lines) - 30} lines more)"]
    raise BuildError("\n".join([f"{what} failed:", f"  {shlex.join(command)}", *shown, cure]))


def by_compiler(
    compiler: Sequence[str], *, verbose: bool, report: Callable[[str], None]
) -> Callable[[Unit, Path], None]:
    """For `compile_all`: compiles a unit into a file."""

    def compile_unit(unit: Unit, target: Path) -> None:
        command = [*compiler, *unit.flags, "-c", str(unit.source), "-o", str(target)]
        if verbose:
            report(shlex.join(command))
        run(command, f"Compiling {unit.source}")

    return compile_unit


def compile_all(
    units: Sequence[Unit],
    compile_unit: Callable[[Unit, Path], None],
    *,
    force: bool,
    jobs: int,
    report: Callable[[str], None],
) -> list[Path]:
    """The units' objects: those that are kept, and the others, which `compile_unit` makes."""
    folder = objects_dir()
    folder.mkdir(parents=True, exist_ok=True)
    done = 0

    def compile_one(unit: Unit) -> tuple[Path, str]:
        target = folder / f"{unit.stem}-{unit.key}.o"
        if target.is_file() and not force:
            os.utime(target)
            return target, "kept"
        start = time.perf_counter()
        part = target.with_suffix(f".{os.getpid()}.part")
        try:
            compile_unit(unit, part)
            if contents(library.sources_dir().parent, unit.source) != unit.contents:
                raise BuildError(
                    f"{unit.source}, or what it includes, changed while it was compiled: "
                    "build again."
                )
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        forget_old(f"{unit.stem}-{'?' * len(unit.key)}.o")
        return target, f"{time.perf_counter() - start:.1f} s"

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(compile_one, unit): unit for unit in units}
        try:
            for future in concurrent.futures.as_completed(pending):
                took = future.result()[1]
                done += 1
                unit = pending[future]
                name = f"{unit.source} {unit.architecture or ''}".rstrip()
                report(f"  [{done}/{len(units)}] {name}  {took}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result()[0] for future in pending]


def forget_old(pattern: str) -> None:
    """Removes objects of another day; another build may be linking a fresh one."""
    for old in objects_dir().glob(pattern):
        if time.time() - old.stat().st_mtime > 86400:
            old.unlink(missing_ok=True)


def link(
    command: Sequence[str],
    output: Path,
    what: str,
    *,
    missing: str,
    variable: str,
    refusal: Callable[[Path], str | None],
    verbose: bool,
    report: Callable[[str], None],
) -> None:
    """Links beside `output`, then renames: a reader sees the old library or the new one.

    Args:
        command: without the output.
        what: the library is.
        missing: the cure where the linker finds something not.
        variable: that names another file for the library.
        refusal: why the new library would not be used, or None.
    """
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    command = [*command, "-o", str(part.absolute())]
    if verbose:
        report(shlex.join(command))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        run(command, f"Linking {what}", missing)
        if reason := refusal(part):
            raise BuildError(f"The new library would be refused: {reason}")
        os.replace(part, output)
    except OSError as error:
        raise BuildError(
            f"{output} cannot be written: {error}. Name another file in {variable}."
        ) from error
    finally:
        part.unlink(missing_ok=True)
