"""Compiles the op for the installed TensorFlow: `keras-norms build`, `python -m keras_norms.build`.

Needs g++ >= 11 or clang++ >= 12 and nothing else: TensorFlow's wheel holds its headers. Where NVRTC
is found, the library gets CUDA kernels too. Objects are kept by what went into them, so that a
change of one source compiles one file.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file: setup.py and the Makefile need neither Keras nor TensorFlow
    import build_tflite
    import compiling
    import cuda as nvidia
    import library
    from compiling import BuildError, Unit, compiler_version, find_compiler
else:
    from keras_norms import build_tflite, compiling, library
    from keras_norms import cuda as nvidia
    from keras_norms.compiling import BuildError, Unit, compiler_version, find_compiler

CUDA_SOURCES = (  # what a library with CUDA kernels has besides
    *("custom_ops/cuda/plan.cc", "custom_ops/cuda/driver.cc", "custom_ops/cuda/images.cc"),
    *("custom_ops/cuda/embedded.cc", "custom_ops/tf/gpu_kernels.cc", "custom_ops/tf/xla_gpu.cc"),
)
KERNELS = Path("custom_ops/cuda/kernels.cu")
_PROBE = """
import json, tensorflow as tf
print("TOOLCHAIN" + json.dumps([tf.__version__, tf.sysconfig.get_include(), tf.sysconfig.get_lib(),
                                tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()]))
"""


class Toolchain(NamedTuple):
    """An installed TensorFlow, as the compiler needs it."""

    version: str
    include: str
    directory: str
    compile_flags: list[str]
    link_flags: list[str]


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
    compiling.check_jobs(jobs)
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
    jobs = jobs or compiling.default_jobs()
    report(
        f"Compiling the op for TensorFlow {toolchain.version} with {compiler_version(compiler)} "
        f"({jobs} at a time)."
    )
    if not cuda:
        report("For the CPU only; `keras-norms build --cuda` adds kernels for GPUs.")
    nvrtc = _find_nvrtc(Path(toolchain.directory)) if cuda else None
    start = time.perf_counter()
    how = {"force": force, "jobs": jobs, "report": report}
    images = None
    if nvrtc is not None:
        images = compile_images(nvrtc, verbose=verbose, **how)
        report("C++:")
    objects = compiling.compile_all(
        _units(toolchain, compiler, images),
        compiling.by_compiler(compiler, verbose=verbose, report=report),
        **how,
    )
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

    def compile_unit(unit: Unit, target: Path) -> None:
        if verbose:
            report(f"NVRTC: {shlex.join((*unit.flags, str(unit.source)))}")
        target.write_bytes(_compile_image(unit, nvrtc))

    units = _image_units(nvrtc)
    return _pack(compiling.compile_all(units, compile_unit, force=force, jobs=jobs, report=report))


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
    special = [name.removeprefix("kernels_").removesuffix(".cc") for name in compiling.TARGETS]
    return ["baseline", *(special if machine in compiling.X86 else ())]


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
        unit = compiling.unit_of(root, root / KERNELS, flags, nvrtc.version)
        units.append(unit._replace(architecture=architecture))
    return units


def _pack(images: Sequence[Path]) -> Path:
    """The images of all architectures in one file beside them."""
    content = nvidia.pack(
        dict(zip(nvidia.ARCHITECTURES, (i.read_bytes() for i in images), strict=True))
    )
    folder = compiling.objects_dir()
    target = folder / f"cuda-images-{hashlib.sha256(content).hexdigest()[:16]}.bin"
    part = target.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, target)
    compiling.forget_old("cuda-images-*.bin")
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
    }
    found = set(root.glob("custom_ops/tf/*.cc"))
    cuda = {root / name for name in CUDA_SOURCES}
    sources = found - cuda if images is None else found | cuda
    units = []
    for source in sorted(sources, key=lambda file: (file.parent.name != "tf", file)):
        own = special.get(source.name, glue_flags if source.parent.name == "tf" else ())
        flags = (*compiling.COMMON, *own)
        # Paths stay out of the key: another environment with the same TensorFlow shares objects.
        neutral = [
            flag.replace(toolchain.directory, "<tf>").replace(
                str(images and images.parent), "<objects>"
            )
            for flag in flags
        ]
        units.append(compiling.unit_of(root, source, flags, by, toolchain.version, neutral=neutral))
    units += compiling.core_units(compiler, platform.machine())
    if not units:
        raise BuildError(f"There are no C++ sources in {root}/custom_ops: reinstall keras-norms.")
    return units


def _compile_image(unit: Unit, nvrtc: nvidia.Nvrtc) -> bytes:
    root = library.sources_dir().parent
    headers = compiling.included(root / unit.source, root)
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


def _link(
    objects: Sequence[Path],
    toolchain: Toolchain,
    compiler: Sequence[str],
    output: Path,
    *,
    verbose: bool,
    report: Callable[[str], None],
) -> None:
    libraries = [*toolchain.link_flags, "-l:libtensorflow_cc.so.2", "-ldl"]
    compiling.link(
        [*compiler, *compiling.LINK, *map(str, objects), *libraries],
        output,
        "the op",
        missing="TensorFlow's own libraries do not fit its version: reinstall TensorFlow.",
        variable="KERAS_NORMS_LIBRARY",
        refusal=lambda path: library.refusal(path, toolchain.version),
        verbose=verbose,
        report=report,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `keras-norms build`."""
    parser.add_argument(
        "--cuda",
        action=argparse.BooleanOptionalAction,
        help="with kernels for GPUs, for which NVRTC is needed (default: as the library there is)",
    )
    parser.add_argument(
        "--tflite",
        action="store_true",
        help="the custom op for TensorFlow Lite and LiteRT instead; needs no TensorFlow",
    )
    parser.add_argument(
        "--machine",
        choices=build_tflite.MACHINES,
        help="with --tflite: what processor it is for (default: this one's)",
    )
    parser.add_argument("--force", action="store_true", help="compile everything anew")
    parser.add_argument("--jobs", type=int, metavar="N", help="compilers at a time")
    parser.add_argument("--output", metavar="FILE", help="the library (default: where it is found)")
    parser.add_argument("--verbose", action="store_true", help="show each command")


def run(arguments: argparse.Namespace) -> int:
    """`keras-norms build`: 0, or 1 with the reason on the standard error stream."""

    def report(line: str) -> None:
        print(line, flush=True)

    how = {
        "force": arguments.force,
        "verbose": arguments.verbose,
        "output": arguments.output,
        "jobs": arguments.jobs,
        "report": report,
    }
    try:
        if arguments.tflite:
            if arguments.cuda is not None:
                raise BuildError("`--cuda` is for the op, not for `--tflite`.")
            build_tflite.build(machine=arguments.machine, **how)
        elif arguments.machine:
            raise BuildError("`--machine` is for `--tflite`: the op is for this machine.")
        else:
            build(cuda=arguments.cuda, **how)
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
