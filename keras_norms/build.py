"""Compiles the op for the installed TensorFlow: `keras-norms build`, `python -m keras_norms.build`.

Needs g++ >= 11 or clang++ >= 12 and nothing else: TensorFlow's wheel holds its headers. Where NVRTC
is found, the library gets CUDA kernels too. Objects are kept by what went into them, so that a
change of one source compiles one file.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: setup.py and the Makefile need neither Keras nor TensorFlow
    import cuda as nvidia
    import library
else:
    from keras_norms import cuda as nvidia
    from keras_norms import library

COMMON = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-DNDEBUG", "-I."),
)
TARGETS = {  # one kernel source, compiled once for each; the processor chooses at run time
    "kernels_avx2.cc": ("-march=x86-64-v3",),
    "kernels_avx512.cc": ("-march=x86-64-v4",),
}
CUDA_SOURCES = (  # what a library with CUDA kernels has besides
    *("custom_ops/cuda/plan.cc", "custom_ops/cuda/driver.cc", "custom_ops/cuda/images.cc"),
    *("custom_ops/cuda/embedded.cc", "custom_ops/tf/gpu_kernels.cc", "custom_ops/tf/xla_gpu.cc"),
)
KERNELS = Path("custom_ops/cuda/kernels.cu")
_X86 = ("x86_64", "AMD64")
LINK = ("-shared", "-Wl,--no-undefined", "-Wl,--gc-sections", "-Wl,-s")
COMPILER_CURE = (
    "Install one (Debian and Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`) "
    "or name one in the variable CXX, then run `keras-norms build`."
)
_PROBE = """
import json, tensorflow as tf
print("TOOLCHAIN" + json.dumps([tf.__version__, tf.sysconfig.get_include(), tf.sysconfig.get_lib(),
                                tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()]))
"""


class BuildError(RuntimeError):
    """The op cannot be compiled here; the message says why and what to do."""


class Toolchain(NamedTuple):
    """An installed TensorFlow, as the compiler needs it."""

    version: str
    include: str
    directory: str
    compile_flags: list[str]
    link_flags: list[str]


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


def build(
    *,
    force: bool = False,
    cuda: bool | None = None,
    verbose: bool = False,
    output: str | os.PathLike | None = None,
    jobs: int | None = None,
    python: Sequence[str] | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Compiles the op for the installed TensorFlow, unless a library that fits is there.

    Args:
        force: compile everything anew.
        cuda: with CUDA kernels, which NVRTC compiles; None: as the library that is there.
        verbose: report each command.
        output: the library; default: `library.destination()`.
        jobs: compilers at a time; default: one a processor, at most 4, each with 1.5 GB of memory.
        python: command of the interpreter whose TensorFlow is meant; default: this one.
        report: is called with each line of progress.

    Returns: the library's path.
    Raises: BuildError, with the reason and its cure.
    """
    if jobs is not None and jobs < 1:
        raise BuildError(f"`jobs` must be at least 1. Received: {jobs}.")
    if sys.platform != "linux":
        raise BuildError(
            f"The compiled op is for Linux. Received: {sys.platform}. "
            "The portable path serves here; there is nothing to build."
        )
    if not force and python is None:  # answer without the seconds that `import tensorflow` takes
        installed = library.tensorflow()
        path = Path(output) if output else library.library_path()
        if installed and library.refusal(path) is None and _is_as_wanted(path, cuda):
            report(f"{path} fits TensorFlow {installed.version}: nothing to do.")
            return path
    output = Path(output) if output else library.destination()
    compiler = find_compiler()
    toolchain = find_tensorflow(python)
    if cuda is None:
        cuda = _has_cuda(output)
    fits = library.refusal(output, toolchain.version) is None
    if fits and not force and _is_as_wanted(output, cuda):
        report(f"{output} fits TensorFlow {toolchain.version}: nothing to do.")
        return output
    jobs = jobs or _default_jobs()
    report(
        f"Compiling the op for TensorFlow {toolchain.version} with {compiler_version(compiler)} "
        f"({jobs} at a time)."
    )
    if not cuda:
        report("For the CPU only; `keras-norms build --cuda` adds kernels for GPUs.")
    nvrtc = _find_nvrtc(Path(toolchain.directory)) if cuda else None
    start = time.perf_counter()
    how = {"force": force, "verbose": verbose, "jobs": jobs, "report": report}
    images = None
    if nvrtc is not None:
        images = compile_images(nvrtc, **how)
        report("C++:")
    objects = _compile_all(_units(toolchain, compiler, images), compiler, **how)
    _link(objects, toolchain, compiler, output, verbose=verbose, report=report)
    size = output.stat().st_size / 1024
    report(f"Built {output} ({size:.0f} KB) in {time.perf_counter() - start:.0f} s.")
    return output


def compile_images(
    nvrtc: nvidia.Nvrtc,
    *,
    force: bool = False,
    verbose: bool = False,
    jobs: int = 1,
    report: Callable[[str], None] = print,
) -> Path:
    """Compiles the CUDA kernels into one file, which custom_ops/cuda/images.h describes.

    Args:
        force, verbose, jobs, report: as in `build`.
    """
    report(f"CUDA kernels by NVRTC {nvrtc.version}:")
    how = {"force": force, "verbose": verbose, "jobs": jobs, "report": report}
    return _pack(_compile_all(_image_units(nvrtc), nvrtc, **how))


def _find_nvrtc(tensorflow: Path) -> nvidia.Nvrtc:
    """NVRTC, beside TensorFlow first, which `tensorflow[and-cuda]` brings."""
    nvrtc = nvidia.find_nvrtc([tensorflow.parent])
    if nvrtc is None:
        raise BuildError(f"There is no NVRTC (libnvrtc.so.12). {nvidia.CURE}")
    return nvrtc


def _has_cuda(path: Path) -> bool:
    return bool((library.read_record(path) or {}).get("cuda"))


def _is_as_wanted(path: Path, cuda: bool | None) -> bool:
    return cuda is None or cuda == _has_cuda(path)


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


def find_tensorflow(python: Sequence[str] | None = None) -> Toolchain:
    """Asks TensorFlow for its flags: the one in this process, else in one of its own."""
    if python is None and hasattr(tf := sys.modules.get("tensorflow"), "sysconfig"):
        said = [tf.__version__, tf.sysconfig.get_include(), tf.sysconfig.get_lib()]
        return Toolchain(*said, tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags())
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [*(python or [sys.executable]), "-c", _PROBE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    found = re.search(r"^TOOLCHAIN(.*)", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(
            f"`import tensorflow` fails in {command[0]}: {reason}. "
            "Run `pip install keras-norms[tensorflow]`, then `keras-norms build`."
        )
    return Toolchain(*json.loads(found[1]))


def cpu_targets(machine: str | None) -> list[str]:
    """Those that the kernels are compiled for."""
    special = [name.removeprefix("kernels_").removesuffix(".cc") for name in TARGETS]
    return ["baseline", *(special if machine in _X86 else ())]


def record(tensorflow_version: str, compiler: str, *, cuda: bool = False) -> str:
    """What `library.read_record` finds in the library, as a string literal of C++."""
    content = {
        "tensorflow": tensorflow_version,
        "keras_norms": library.VERSION,
        "sources": library.digest(),
        "machine": platform.machine(),
        "compiler": compiler,
        "cuda": list(nvidia.ARCHITECTURES) if cuda else [],
    }
    return json.dumps(json.dumps(content))


def _image_units(nvrtc: nvidia.Nvrtc) -> list[Unit]:
    """The CUDA kernels, for each of the architectures."""
    root = library.sources_dir().parent
    units = []
    for architecture in nvidia.ARCHITECTURES:
        flags = nvidia.options(architecture)
        key = hashlib.sha256("\0".join((nvrtc.version, *flags)).encode())
        contents = _contents(root, KERNELS)
        key.update(contents)
        units.append(Unit(KERNELS, flags, key.hexdigest()[:16], contents, architecture))
    return units


def _pack(images: Sequence[Path]) -> Path:
    """The images of all architectures in one file beside them."""
    content = nvidia.pack(
        dict(zip(nvidia.ARCHITECTURES, (i.read_bytes() for i in images), strict=True))
    )
    folder = _objects_dir()
    target = folder / f"cuda-images-{hashlib.sha256(content).hexdigest()[:16]}.bin"
    part = target.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, target)
    _forget_old("cuda-images-*.bin")
    return target


def _units(toolchain: Toolchain, compiler: Sequence[str], images: Path | None) -> list[Unit]:
    """All C++ sources, the slowest (those with TensorFlow's headers) first.

    Args:
        images: the packed images of the CUDA kernels; None: for the CPU only.
    """
    root = library.sources_dir().parent
    glue_flags = (
        *toolchain.compile_flags,
        *("-DEIGEN_USE_THREADS", "-w"),
        f"-I{toolchain.include}/external/highwayhash",
        f"-I{toolchain.include}/external/farmhash_archive/src",
    )
    by = compiler_version(compiler)
    special = {
        "record.cc": (
            f"-DKERAS_NORMS_RECORD={record(toolchain.version, by, cuda=images is not None)}",
        ),
        "embedded.cc": (f'-DKERAS_NORMS_CUDA_IMAGES="{images}"',),  # named by its contents
        **TARGETS,
    }
    base = hashlib.sha256(f"{by}\0{toolchain.version}".encode())
    units = []
    found = {*root.glob("custom_ops/tf/*.cc"), *root.glob("custom_ops/core/*.cc")}
    cuda = {root / name for name in CUDA_SOURCES}
    sources = found - cuda if images is None else found | cuda
    for source in sorted(sources, key=lambda file: (file.parent.name != "tf", file)):
        if source.name in TARGETS and platform.machine() not in _X86:
            continue
        own = special.get(source.name, glue_flags if source.parent.name == "tf" else ())
        key = base.copy()
        # Paths stay out of the key: another environment with the same TensorFlow shares objects.
        key.update(
            "\0".join((*COMMON, *own))
            .replace(toolchain.directory, "<tf>")
            .replace(str(images and images.parent), "<objects>")
            .encode()
        )
        contents = _contents(root, source)
        key.update(contents)
        name = source.relative_to(root)
        units.append(Unit(name, (*COMMON, *own), key.hexdigest()[:16], contents))
    if not units:
        raise BuildError(f"There are no C++ sources in {root}/custom_ops: reinstall keras-norms.")
    return units


def _contents(root: Path, source: Path) -> bytes:
    """A source and all that it includes, with their names."""
    files = [root / source, *sorted(_included(root / source, root))]
    return b"".join(f"\0{file.relative_to(root)}\0".encode() + file.read_bytes() for file in files)


def _included(source: Path, root: Path, seen: frozenset[Path] = frozenset()) -> set[Path]:
    """Our own files that `source` includes, directly or not."""
    found: set[Path] = set()
    text = source.read_text(encoding="utf-8")
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        file = next((f for f in (root / name, source.parent / name) if f.is_file()), None)
        if file and file not in seen:
            found |= {file} | _included(file, root, seen | found | {file})
    return found


def _default_jobs() -> int:
    """TensorFlow's headers take over 1 GB a compiler."""
    jobs = min(4, len(os.sched_getaffinity(0)))
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = int(re.search(r"MemAvailable:\s*(\d+)", file.read())[1])  # in KiB
    except (OSError, TypeError):
        return jobs
    return max(1, min(jobs, free // 1_500_000))


def _objects_dir() -> Path:
    """Where objects are kept: the checkout's build folder, else the cache."""
    if named := os.environ.get("KERAS_NORMS_OBJECTS"):
        return Path(named).absolute()  # compilers run in another folder
    root = library.sources_dir().parent
    if (root / ".git").exists() and os.access(root, os.W_OK):
        return root / "build" / "objects"
    return library.cache_dir() / "objects"


def _run(command: Sequence[str], what: str) -> None:
    """Runs a compiler in the folder that holds custom_ops, so that no object names that folder."""
    root = library.sources_dir().parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode == 0:
        return
    output = done.stderr + done.stdout
    if "Killed" in output or done.returncode == -9:
        cure = "The compiler ran out of memory: try `keras-norms build --jobs 1`."
    elif re.search(r"x86-64-v\d|unrecognized|unknown argument|-std=c\+\+17", output):
        cure = "The compiler is too old: name g++ >= 11 or clang++ >= 12 in the variable CXX."
    elif "cannot find" in output or "undefined reference" in output:
        cure = "TensorFlow's own libraries do not fit its version: reinstall TensorFlow."
    else:
        cure = "Try another compiler by the variable CXX. keras-norms works without the op."
    lines = output.strip().splitlines()
    shown = lines if len(lines) <= 30 else [*lines[:30], f"... ({len(lines) - 30} lines more)"]
    raise BuildError("\n".join([f"{what} failed:", f"  {shlex.join(command)}", *shown, cure]))


def _compile_all(
    units: Sequence[Unit],
    compiler: Sequence[str] | nvidia.Nvrtc,
    *,
    force: bool,
    verbose: bool,
    jobs: int,
    report: Callable[[str], None],
) -> list[Path]:
    folder = _objects_dir()
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
            if isinstance(compiler, nvidia.Nvrtc):
                if verbose:
                    report(f"NVRTC: {shlex.join((*unit.flags, str(unit.source)))}")
                part.write_bytes(_compile_image(unit, compiler))
            else:
                command = [*compiler, *unit.flags, "-c", str(unit.source), "-o", str(part)]
                if verbose:
                    report(shlex.join(command))
                _run(command, f"Compiling {unit.source}")
            if _contents(library.sources_dir().parent, unit.source) != unit.contents:
                raise BuildError(
                    f"{unit.source}, or what it includes, changed while it was compiled: "
                    "build again."
                )
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        _forget_old(f"{unit.stem}-{'?' * len(unit.key)}.o")
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


def _compile_image(unit: Unit, nvrtc: nvidia.Nvrtc) -> bytes:
    root = library.sources_dir().parent
    headers = _included(root / unit.source, root)
    try:
        return nvrtc.compile(
            unit.architecture,
            str(unit.source),
            (root / unit.source).read_bytes(),
            {str(file.relative_to(root)): file.read_bytes() for file in headers},
        )
    except nvidia.CudaError as error:
        raise BuildError(
            f"Compiling {unit.source} for {unit.architecture} failed: {error}\n{nvidia.CURE}"
        ) from error


def _forget_old(pattern: str) -> None:
    """Removes objects of another day; another build may be linking a fresh one."""
    for old in _objects_dir().glob(pattern):
        if time.time() - old.stat().st_mtime > 86400:
            old.unlink(missing_ok=True)


def _link(
    objects: Sequence[Path],
    toolchain: Toolchain,
    compiler: Sequence[str],
    output: Path,
    *,
    verbose: bool,
    report: Callable[[str], None],
) -> None:
    """Links beside `output`, then renames: a reader sees the old library or the new one."""
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    libraries = [*toolchain.link_flags, "-l:libtensorflow_cc.so.2", "-ldl"]
    command = [*compiler, *LINK, *map(str, objects), *libraries, "-o", str(part.absolute())]
    if verbose:
        report(shlex.join(command))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _run(command, "Linking the op")
        if reason := library.refusal(part, toolchain.version):
            raise BuildError(f"The new library would be refused: {reason}")
        os.replace(part, output)
    except OSError as error:
        raise BuildError(
            f"{output} cannot be written: {error}. Name another file in KERAS_NORMS_LIBRARY."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `keras-norms build`."""
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="with kernels for GPUs, for which NVRTC is needed (default: as the library there is)",
    )
    parser.add_argument("--force", action="store_true", help="compile everything anew")
    parser.add_argument("--jobs", type=int, metavar="N", help="compilers at a time")
    parser.add_argument("--output", metavar="FILE", help="the library (default: where it is found)")
    parser.add_argument("--verbose", action="store_true", help="show each command")


def run(arguments: argparse.Namespace) -> int:
    """`keras-norms build`: 0, or 1 with the reason on the standard error stream."""

    def report(line: str) -> None:
        print(line, flush=True)

    try:
        build(
            force=arguments.force,
            cuda=arguments.cuda,
            verbose=arguments.verbose,
            output=arguments.output,
            jobs=arguments.jobs,
            report=report,
        )
    except BuildError as error:
        print(f"keras-norms build: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m keras_norms.build`."""
    parser = argparse.ArgumentParser(prog="python -m keras_norms.build", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--record", metavar="VERSION", help="print the record's header, for Bazel")
    chosen = parser.parse_args(arguments)
    if chosen.record:
        print(f"#define KERAS_NORMS_RECORD {record(chosen.record, 'Bazel')}")
        return 0
    return run(chosen)


if __name__ == "__main__":
    sys.exit(main())
