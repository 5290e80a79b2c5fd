"""Builds the custom op for TensorFlow Lite and LiteRT: `keras-norms build --tflite`.

The library talks to its host through TFLite's C interface, so it needs neither TensorFlow nor its
headers, serves every release, and is compiled for other processors by their compilers alone.
"""

import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a file: setup.py and the Makefile need neither Keras nor TensorFlow
    import compiling
    import library
    from compiling import BuildError
else:
    from keras_norms import compiling, library
    from keras_norms.compiling import BuildError

MACHINES = ("x86_64", "aarch64")
# The host may have another libstdc++, as phones do, or none.
LINK = (
    *("-static-libstdc++", "-static-libgcc", "-pthread", "-ldl"),
    *("-Wl,-soname,libkeras_norms_tflite.so", "-Wl,--version-script=custom_ops/tflite/exports.lds"),
)


def build(
    *,
    force: bool = False,
    verbose: bool = False,
    output: str | os.PathLike | None = None,
    jobs: int | None = None,
    machine: str | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Builds the library, unless one that fits is there.

    Args:
        force, verbose, jobs, report: as of the op's `build`.
        output: the library; default: `library.tflite_destination(machine)`.
        machine: one of `MACHINES`, the processor it is for; default: this one's.

    Returns: the library's path.
    Raises: BuildError, with the reason and its cure.
    """
    compiling.check_jobs(jobs)
    if sys.platform != "linux":
        raise BuildError(
            f"`keras-norms build --tflite` is for Linux. Received: {sys.platform}. "
            "custom_ops/tflite/CMakeLists.txt builds for Android."
        )
    machine = machine or platform.machine()
    output = Path(output) if output else library.tflite_destination(machine)
    if not force and library.tflite_refusal(output, machine) is None:
        report(f"{output} fits: nothing to do.")
        return output
    compiler = find_compiler(machine)
    jobs = jobs or compiling.default_jobs()
    by = compiling.compiler_version(compiler)
    report(f"Compiling the custom op for TFLite on {machine} with {by} ({jobs} at a time).")
    start = time.perf_counter()
    objects = compiling.compile_all(
        _units(compiler, machine),
        compiling.by_compiler(compiler, verbose=verbose, report=report),
        force=force,
        jobs=jobs,
        report=report,
    )
    compiling.link(
        [*compiler, *compiling.LINK, *map(str, objects), *LINK],
        output,
        "the custom op for TFLite",
        missing="Install the static libstdc++ (Fedora: `dnf install libstdc++-static`).",
        variable="KERAS_NORMS_TFLITE_LIBRARY",
        refusal=lambda path: library.tflite_refusal(path, machine),
        verbose=verbose,
        report=report,
    )
    size = output.stat().st_size / 1024
    report(f"Built {output} ({size:.0f} KB) in {time.perf_counter() - start:.0f} s.")
    return output


def find_compiler(machine: str) -> list[str]:
    """The command of a C++ compiler for this processor or, by `$CXX` or its name, another."""
    if machine == platform.machine() or shlex.split(os.environ.get("CXX", "")):
        return compiling.find_compiler()
    name = f"{machine}-linux-gnu-g++"
    if shutil.which(name):
        return [name]
    package = f"g++-{machine.replace('_', '-')}-linux-gnu"
    raise BuildError(
        f"There is no {name} on the PATH. Install it (Debian and Ubuntu: `apt-get install "
        f"{package}`) or name a compiler for {machine} in the variable CXX."
    )


def _units(compiler: Sequence[str], machine: str) -> list[compiling.Unit]:
    root = library.sources_dir().parent
    by = compiling.compiler_version(compiler)
    record = {
        "keras_norms": library.VERSION,
        "sources": library.tflite_digest(),
        "machine": machine,
        "compiler": by,
    }
    text = json.dumps(json.dumps(record))
    units = compiling.core_units(compiler, machine)
    for source in sorted(root.glob("custom_ops/tflite/*.cc")):
        own = (f"-DKERAS_NORMS_RECORD={text}",) if source.name == "record.cc" else ()
        units.append(compiling.unit_of(root, source, (*compiling.COMMON, *own), by))
    return units
