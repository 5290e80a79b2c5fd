"""Packaging. The metadata is in pyproject.toml; here the compiled op is added to the wheel.

The op serves one TensorFlow release, so it is compiled for the TensorFlow of the environment that
is installed into. Where that cannot be (no TensorFlow, no compiler), the package installs without
it and computes on its portable path; `keras-norms doctor` tells why, `keras-norms build` mends it.

KERAS_NORMS_BUILD=0 leaves the op out; KERAS_NORMS_BUILD=1 makes its failure an error.
"""

import importlib
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # build isolation would have brought a newer one
    sys.exit("setuptools >= 77 is needed here: pip install --upgrade setuptools")

ROOT = Path(__file__).resolve().parent


def native_module(name):
    """`keras_norms.<name>` without `keras_norms/__init__.py`, which imports Keras."""
    if "keras_norms" not in sys.modules:
        package = types.ModuleType("keras_norms")
        package.__path__ = [str(ROOT / "keras_norms")]
        sys.modules["keras_norms"] = package
    return importlib.import_module(f"keras_norms.{name}")


def interpreters():
    """Commands of the interpreters whose TensorFlow may be meant, the likeliest first.

    Build isolation hides the environment that is installed into. Under pip it is this interpreter
    without the paths that pip adds; under `python -m build`, the one that runs `build`.
    """
    yield [sys.executable]
    yield [sys.executable, "-I"]
    parent = Path(f"/proc/{os.getppid()}")
    try:
        program = parent.joinpath("cmdline").read_bytes().partition(b"\0")[0].decode()
        outer = os.path.join(os.readlink(parent / "cwd"), program)
    except OSError:  # not Linux, or none of our business
        return
    if os.path.basename(outer).startswith("python") and os.access(outer, os.X_OK):
        yield [outer, "-I"]


def has_tensorflow(python):
    """Whether an interpreter would import TensorFlow, without the seconds that takes."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
    return subprocess.run([*python, "-c", look], capture_output=True, check=False).returncode == 0


def compile_op():
    """The library's path, or None with the reason printed."""
    wanted = os.environ.get("KERAS_NORMS_BUILD", "auto")
    if wanted == "0":
        return None
    build, library = native_module("build"), native_module("library")
    try:
        python = next(filter(has_tensorflow, interpreters()), None)
        if python is None:
            raise build.BuildError(
                "There is no TensorFlow in the environment that is installed into. "
                "Run `pip install keras-norms[tensorflow]`, then `keras-norms build`."
            )
        return build.build(output=ROOT / "build" / "native" / library.NAME, python=python)
    except Exception as error:  # whatever it is, the package works without the op
        if wanted == "1":
            raise SystemExit(f"keras-norms: {error}") from error
        print(f"keras-norms: installing without the compiled op. {error}", file=sys.stderr)
        return None


class NativeDistribution(Distribution):
    """`native` is the library to pack, once there is one."""

    native = None

    def has_ext_modules(self):
        return self.native is not None or super().has_ext_modules()


class BuildPy(build_py):
    """Packs the C++ sources, and the library if there is one."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._native_files().items():
                self.mkpath(os.path.dirname(target))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *self._native_files().values()]

    def _native_files(self):
        if self.editable_mode:
            return {}
        package = os.path.join(self.build_lib, "keras_norms")
        files = {
            str(file): os.path.join(package, str(file.relative_to(ROOT)))
            for file in (ROOT / "custom_ops").rglob("*")
            if file.suffix in {".cc", ".cu", ".h", ".inc", ".lds"} or file.name == "CMakeLists.txt"
        }
        if native := self.distribution.native:
            files[str(native)] = os.path.join(package, "_native", native.name)
        return files


class BdistWheel(bdist_wheel):
    """A wheel of this platform if it holds the library, of any platform if not."""

    def run(self):
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        self.distribution.native = compile_op()
        self.root_is_pure = self.distribution.native is None
        super().run()

    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


class EditableWheel(editable_wheel):
    """Puts the library where an editable install looks for it."""

    def run(self):
        super().run()
        if native := compile_op():
            target = ROOT / "keras_norms" / "_native" / native.name
            target.parent.mkdir(exist_ok=True)
            part = target.with_suffix(".part")
            shutil.copy2(native, part)
            os.replace(part, target)


if __name__ == "__main__":  # the tests import this file
    setup(
        distclass=NativeDistribution,
        cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel, "editable_wheel": EditableWheel},
    )
