"""The compiled op as a file: compiled, recorded, found, refused; and the package around it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from keras_norms import build, build_tflite, compiling, cuda, library

ROOT = Path(__file__).resolve().parent.parent
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"
)
SHORT = """
import os, sys
import numpy as np, keras, keras_norms as kn
x = np.random.default_rng(0).normal(3, 2, (7, 5)).astype("float32")
y = np.asarray(kn.LayerNormalization(epsilon=0.0)(x))
want = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
assert abs(y - want).max() < 2e-6, abs(y - want).max()  # rounding of NumPy's float32 statistics
"""


def python(code, **environment):
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_library(path, **record):
    """A file that looks like a library and is none."""
    path.write_bytes(b"\x7fELF\0garbage KERAS_NORMS_RECORD" + json.dumps(record).encode() + b"\0x")
    return path


def own(**changes):
    record = {"tensorflow": "2.21.0", "keras_norms": library.VERSION, "sources": library.digest()}
    return {**record, **changes}


# The record -----------------------------------------------------------------------------------


def test_record_is_read_from_the_bytes(tmp_path):
    file = write_library(tmp_path / "a.so", tensorflow="2.21.0", sources="0123")
    assert library.read_record(file) == {"tensorflow": "2.21.0", "sources": "0123"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF and no record",
        b"KERAS_NORMS_RECORD",
        b'KERAS_NORMS_RECORD{"tensorflow": "2.21.0"}',  # no end
        b'KERAS_NORMS_RECORD{"tensorflow": \0',
        b"KERAS_NORMS_RECORD{\xff}\0",
    ],
)
def test_no_record(tmp_path, content):
    file = tmp_path / "a.so"
    file.write_bytes(content)
    assert library.read_record(file) is None
    assert library.refusal(file, "2.21.0") == (
        f"{file} is no keras-norms library: it carries no record. Run `keras-norms build`."
    )


def test_record_of_a_file_that_is_not_there(tmp_path):
    file = tmp_path / "a.so"
    assert library.read_record(file) is None
    assert library.refusal(file, "2.21.0") == (
        f"The compiled op is missing ({file}). Run `keras-norms build`."
    )


def test_refusal(tmp_path):
    file = write_library(tmp_path / "a.so", **own())
    assert library.refusal(file, "2.21.0") is None
    assert library.refusal(file, "2.21.1") == (
        f"{file} was built for TensorFlow 2.21.0, and 2.21.1 is installed. Run `keras-norms build`."
    )
    write_library(file, **own(tensorflow="2.22.0rc1"))
    assert library.refusal(file, "2.22.0-rc1") is None  # as the module spells it
    write_library(file, **own(sources="old"))
    assert library.refusal(file, "2.21.0") == (
        f"{file} was built from other sources (keras-norms {library.VERSION}, old) than those "
        f"installed ({library.VERSION}, {library.digest()}). Run `keras-norms build`."
    )
    write_library(file, **own(keras_norms="0.0.9"))
    assert "was built from other sources (keras-norms 0.0.9, " in library.refusal(file, "2.21.0")


def test_tensorflow_is_found_without_importing_it():
    code = """
import importlib.util, sys, types
package = types.ModuleType("keras_norms")
package.__path__ = importlib.util.find_spec("keras_norms").submodule_search_locations
sys.modules["keras_norms"] = package
from keras_norms import library
found = library.tensorflow()
assert "tensorflow" not in sys.modules
import tensorflow as tf
print(found.version == tf.__version__, str(found.directory) in tf.__file__)
print(library.tensorflow() == found)
"""
    assert python(code).split() == ["True", "True", "True"]


def test_library_path_prefers_what_fits(tmp_path, monkeypatch):
    package, cache = tmp_path / "package", tmp_path / "cache"
    monkeypatch.delenv("KERAS_NORMS_LIBRARY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(library, "tensorflow", lambda: library.TensorFlow("2.21.0", tmp_path))
    monkeypatch.setattr(library, "digest", lambda: "same")
    monkeypatch.setattr(library, "_PACKAGE", package)
    inside, cached = package / "_native" / library.NAME, cache / "keras_norms" / "2.21.0"
    cached = cached / library.NAME
    for folder in (inside.parent, cached.parent):
        folder.mkdir(parents=True)
    assert library.library_path() == library.destination() == inside
    write_library(cached, **own())
    assert library.library_path() == cached
    write_library(inside, **own(tensorflow="2.20.0"))
    assert library.library_path() == cached  # the one inside is for another TensorFlow
    write_library(inside, **own())
    assert library.library_path() == inside
    cached.unlink()
    write_library(inside, **own(tensorflow="2.20.0"))
    assert library.library_path() == inside  # so that its refusal is told
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert library.destination() == cached
    monkeypatch.setenv("KERAS_NORMS_LIBRARY", str(tmp_path / "mine.so"))
    assert library.library_path() == library.destination() == tmp_path / "mine.so"


# The package with another library, or none -----------------------------------------------------


@pytest.mark.slow
def test_without_the_library(tmp_path):
    missing = str(tmp_path / "none.so")
    code = f"""{SHORT}
info = kn.kernel_info()
assert not info.fused and info.library is None, info
model = keras.Sequential([keras.Input((5,)), kn.BatchNormalization(), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(x, x[:, :1], verbose=0)
try:
    kn.set_kernel("fused")
    kn.LayerNormalization()(x)
except RuntimeError as error:
    print(info.why_not in str(error))
print(info.why_not)
"""
    got = python(code, KERAS_NORMS_LIBRARY=missing).splitlines()
    assert got == ["True", f"The compiled op is missing ({missing}). Run `keras-norms build`."]


@pytest.mark.slow
@needs_compiler
def test_a_library_for_another_tensorflow_is_never_opened(tmp_path):
    """A real library, which leaves a file behind if it is opened."""
    opened, source, file = tmp_path / "opened", tmp_path / "a.cc", tmp_path / "a.so"
    record = json.dumps(json.dumps(own(tensorflow="2.20.0")))
    source.write_text(
        '#include <cstdio>\nextern "C" { extern const char record[]; }\n'
        f'extern const char record[] = "KERAS_NORMS_RECORD" {record};\n'
        "__attribute__((constructor)) static void Opened() {\n"
        f'  if (FILE* file = std::fopen("{opened}", "w")) std::fclose(file);\n}}\n'
    )
    compiler = build.find_compiler()
    subprocess.run([*compiler, "-shared", "-fPIC", source, "-o", file], check=True)
    code = f"{SHORT}\nprint(kn.kernel_info().fused, kn.kernel_info().why_not, sep='|')"
    version = library.tensorflow().version
    got = python(code, KERAS_NORMS_LIBRARY=str(file))
    assert got == (
        f"False|{file} was built for TensorFlow 2.20.0, and {version} is installed. "
        "Run `keras-norms build`.\n"
    )
    assert not opened.exists()
    python(f"import ctypes; ctypes.CDLL({str(file)!r})")
    assert opened.exists()  # the trap works


@pytest.mark.slow
def test_a_library_that_does_not_load_is_told(tmp_path):
    file = write_library(tmp_path / "a.so", **own(tensorflow=library.tensorflow().version))
    got = python(f"{SHORT}\nprint(kn.kernel_info().why_not)", KERAS_NORMS_LIBRARY=str(file))
    assert got.startswith(f"{file} does not load: ")
    assert got.endswith("Run `keras-norms build`.\n")
    assert len(got.splitlines()) == 1


@pytest.mark.slow
def test_import_takes_little_more_than_keras():
    code = """
import time, keras
start = time.process_time()  # not of the clock, which a busy machine holds up
import keras_norms
print(time.process_time() - start)
"""
    took = min(float(python(code)) for _ in range(3))
    assert took < 0.3, f"`import keras_norms` takes {took:.2f} s beyond `import keras`"


@pytest.mark.slow
def test_version():
    code = "import keras_norms; print(keras_norms.__version__)"
    assert python(code).strip() == library.VERSION == importlib.metadata.version("keras-norms")


# Compiling ------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A small custom_ops of its own, with its own objects and library."""
    folder = tmp_path / "checkout" / "custom_ops"
    (folder / "core").mkdir(parents=True)
    (folder / "tf").mkdir()
    shutil.copy(library.sources_dir() / "tf" / "record.cc", folder / "tf")
    (folder / "core" / "one.h").write_text("int One();\n")
    (folder / "core" / "one.cc").write_text(
        '#include "custom_ops/core/one.h"\nint One() { return 1; }\n'
    )
    (folder / "core" / "two.cc").write_text("int Two() { return 2; }\n")
    monkeypatch.setattr(library, "sources_dir", lambda: folder)
    monkeypatch.setenv("KERAS_NORMS_OBJECTS", str(tmp_path / "objects"))
    monkeypatch.setenv("KERAS_NORMS_LIBRARY", str(tmp_path / "out" / "a.so"))
    monkeypatch.setattr(cuda, "find_nvrtc", lambda folders=(): None)
    library._digest.cache_clear()
    yield folder
    library._digest.cache_clear()


def compiled(lines):
    """The sources that were compiled, of the lines reported; the record aside, which always is."""
    found = [re.fullmatch(r"  \[\d/\d\] custom_ops/(\S+)  [\d.]+ s", line) for line in lines]
    return sorted(m[1] for m in found if m and m[1] != "tf/record.cc")


@pytest.mark.slow
@needs_compiler
def test_build_compiles_only_what_changed(sources, tmp_path):
    def run(**arguments):
        library._digest.cache_clear()
        lines = []
        assert build.build(report=lines.append, **arguments) == tmp_path / "out" / "a.so"
        record = library.read_record(tmp_path / "out" / "a.so")
        assert record["tensorflow"] == library.tensorflow().version
        assert record["keras_norms"] == library.VERSION
        assert record["sources"] == library.digest()
        return lines

    assert compiled(run()) == ["core/one.cc", "core/two.cc"]
    version = library.tensorflow().version
    assert run() == [f"{tmp_path}/out/a.so fits TensorFlow {version}: nothing to do."]
    (sources / "core" / "one.h").write_text("int One();  // changed\n")
    assert compiled(run()) == ["core/one.cc"]
    (tmp_path / "out" / "a.so").unlink()
    assert compiled(run()) == []
    assert compiled(run(force=True)) == ["core/one.cc", "core/two.cc"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.so"]


@needs_compiler
def test_a_build_that_fails_says_why_and_keeps_the_old_library(sources, tmp_path):
    build.build(report=lambda line: None)
    before = (tmp_path / "out" / "a.so").read_bytes()
    (sources / "core" / "two.cc").write_text("int Two() { return two; }\n")
    library._digest.cache_clear()
    with pytest.raises(build.BuildError) as caught:
        build.build(report=lambda line: None)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Compiling custom_ops/core/two.cc failed:"
    assert " -c custom_ops/core/two.cc -o " in lines[1]
    assert any("two" in line and "error" in line for line in lines[2:-1])
    assert lines[-1] == (
        "Try another compiler by the variable CXX. keras-norms works without the op."
    )
    assert (tmp_path / "out" / "a.so").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))


@needs_compiler
def test_no_object_of_a_source_that_changes_meanwhile(sources, tmp_path, monkeypatch):
    """It would be kept under the name of the contents before, and be taken for them."""
    whole = compiling.run

    def edit_then_compile(command, what, missing=None):
        if what.endswith("one.cc"):
            (sources / "core" / "one.h").write_text("int One();  // edited\n")
        whole(command, what, missing)

    monkeypatch.setattr(compiling, "run", edit_then_compile)
    with pytest.raises(build.BuildError, match=r"one\.cc, or what it includes, changed while"):
        build.build(report=lambda line: None)
    assert not list((tmp_path / "objects").glob("core-one-*"))
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_objects_may_lie_in_a_folder_relative_to_this(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_NORMS_OBJECTS", "here")
    build.build(report=lambda line: None)
    assert len(list((tmp_path / "here").glob("*.o"))) == 3


def test_jobs_are_at_least_one():
    with pytest.raises(build.BuildError) as caught:
        build.build(jobs=-1)
    assert str(caught.value) == "`jobs` must be at least 1. Received: -1."


@needs_compiler
def test_a_library_with_undefined_symbols_is_not_linked(sources):
    (sources / "core" / "two.cc").write_text("int Three();\nint Two() { return Three(); }\n")
    (sources / "core" / "one.cc").write_text(
        'int Two();\nextern "C" __attribute__((visibility("default"))) int Go() { return Two(); }\n'
    )
    with pytest.raises(build.BuildError, match=r"^Linking the op failed:"):
        build.build(report=lambda line: None)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(build.BuildError) as caught:
        build.find_compiler()
    assert str(caught.value) == (
        "CXX names no command that exists. Received: no-such-compiler. Install one (Debian and "
        "Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`) or name one in the variable "
        "CXX, then run `keras-norms build`."
    )
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match=r"^There is no C\+\+ compiler"):
        build.find_compiler()


def test_no_tensorflow():
    with pytest.raises(build.BuildError) as caught:
        build.find_tensorflow([sys.executable, "-S", "-E"])  # without site-packages
    assert "No module named 'tensorflow'" in str(caught.value)
    assert str(caught.value).endswith(
        "Run `pip install keras-norms[tensorflow]`, then `keras-norms build`."
    )


# The custom op for TFLite ----------------------------------------------------------------------


@pytest.fixture
def tflite_sources(sources, tmp_path, monkeypatch):
    """The sources of `sources` and a custom op for TFLite."""
    (sources / "tflite").mkdir()
    real = ROOT / "custom_ops" / "tflite"
    for name in ("record.cc", "export.h", "exports.lds"):
        shutil.copy(real / name, sources / "tflite")
    monkeypatch.setenv("KERAS_NORMS_TFLITE_LIBRARY", str(tmp_path / "out" / "b.so"))
    return sources


@needs_compiler
def test_build_tflite(tflite_sources, tmp_path):
    """Beside the op, whose objects of the core it shares; each knows its own sources."""

    def run(function, **arguments):
        library._digest.cache_clear()
        lines = []
        function(report=lines.append, **arguments)
        return lines

    path = tmp_path / "out" / "b.so"
    assert library.tflite_refusal(path) == (
        f"The custom op for TFLite is missing ({path}). Run `keras-norms build --tflite`."
    )
    run(build.build)
    assert compiled(run(build_tflite.build)) == ["tflite/record.cc"]
    assert library.tflite_refusal(path) is None
    assert library.read_record(path)["machine"] == os.uname().machine
    assert run(build_tflite.build) == [f"{path} fits: nothing to do."]
    (tflite_sources / "tflite" / "more.cc").write_text("int More() { return 3; }\n")
    assert compiled(run(build_tflite.build)) == ["tflite/more.cc", "tflite/record.cc"]
    assert len(run(build.build)) == 1  # nothing to do
    (tflite_sources / "core" / "two.cc").write_text("int Two() { return 22; }\n")
    library._digest.cache_clear()
    assert f"{path} was built from other sources" in library.tflite_refusal(path)
    assert "was built for " in library.tflite_refusal(path, "riscv64")


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs a cross-compiler")
def test_build_tflite_for_another_processor(tflite_sources, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    path = build_tflite.build(machine="aarch64", output=tmp_path / "c.so", report=lambda line: None)
    assert path.read_bytes()[18:20] == b"\xb7\0"  # EM_AARCH64
    assert library.tflite_refusal(path, "aarch64") is None
    monkeypatch.delenv("KERAS_NORMS_TFLITE_LIBRARY")
    assert library.tflite_destination("aarch64").parts[-2:] == ("aarch64", library.TFLITE_NAME)


def test_no_compiler_for_another_processor(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    with pytest.raises(build.BuildError) as caught:
        build_tflite.find_compiler(other)
    assert str(caught.value) == (
        f"There is no {other}-linux-gnu-g++ on the PATH. Install it (Debian and Ubuntu: `apt-get "
        f"install g++-{other.replace('_', '-')}-linux-gnu`) or name a compiler for {other} in the "
        "variable CXX."
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--machine", "aarch64"], "`--machine` is for `--tflite`: the op is for this machine."),
        (["--tflite", "--cuda"], "`--cuda` is for the op, not for `--tflite`."),
    ],
)
def test_arguments_that_do_not_go_together(arguments, reason, capsys):
    assert build.main(arguments) == 1
    assert capsys.readouterr().err == f"keras-norms build: {reason}\n"


@needs_compiler
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm of binutils")
@pytest.mark.slow
@pytest.mark.parametrize("source", compiling.TARGETS)
def test_kernels_share_no_function_with_other_processors(source, tmp_path):
    """A weak function of kernels_avx512.cc may be the one that the linker keeps for everyone."""
    if os.uname().machine != "x86_64":
        pytest.skip("x86-64 only")
    flags, file = (*compiling.COMMON, *compiling.TARGETS[source]), tmp_path / "a.o"
    command = [*build.find_compiler(), *flags, "-c", f"custom_ops/core/{source}", "-o", file]
    subprocess.run(command, check=True, cwd=library.sources_dir().parent)
    listing = subprocess.run(
        ["nm", "-C", "--defined-only", file], check=True, capture_output=True, text=True
    ).stdout
    assert not re.findall(r"^\S* [uVvWw] .*", listing, re.MULTILINE)


@pytest.mark.parametrize("file", ["BUILD", "Makefile", "custom_ops/tflite/CMakeLists.txt"])
def test_other_builds_compile_with_the_same_flags(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for flag in ("-fno-math-errno", "-fno-trapping-math", *sum(compiling.TARGETS.values(), ())):
        assert flag in text


# Packaging: over the network ------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the files that git knows or would take, with nothing that was built."""
    target = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


class Environment:
    """A fresh virtual environment; `sees_ours` lends it the packages of this one."""

    def __init__(self, path, sees_ours=False):
        venv.create(path, with_pip=True)
        self.bin = path / "bin"
        if sees_ours:
            site = next((path / "lib").glob("python*")) / "site-packages"
            packages = {p for p in sys.path if p.endswith("site-packages")}
            (site / "ours.pth").write_text("\n".join(packages))

    def run(self, *command, check=True, **environment):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("KERAS", "PYTHON"))}
        clean |= {"KERAS_NORMS_OBJECTS": str(ROOT / "build" / "objects")}
        clean |= {"TF_CPP_MIN_LOG_LEVEL": "3", "XDG_CACHE_HOME": str(self.bin.parent / "cache")}
        done = subprocess.run(
            [self.bin / command[0], *map(str, command[1:])],
            env={**clean, **environment},
            cwd=self.bin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


NATIVE = "keras_norms/_native/libkeras_norms.so"


@pytest.mark.packaging
@needs_compiler
def test_sdist_holds_the_sources_and_wheel_its_library(clone, tmp_path):
    """`python -m build` in isolation, run by an interpreter that has TensorFlow."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", tmp_path, clone],
        env={**os.environ, "KERAS_NORMS_OBJECTS": str(ROOT / "build" / "objects")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    want = {str(f.relative_to(clone)) for f in (clone / "custom_ops").rglob("*") if f.is_file()}
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    assert want <= held
    assert {"BUILD", "Makefile", "tests/test_build.py", "keras_norms/py.typed"} <= held
    assert not [name for name in held if name.endswith((".so", ".o"))]
    (wheel,) = tmp_path.glob("*.whl")
    machine = os.uname().machine
    assert re.fullmatch(rf"keras_norms-[\d.]+-py3-none-linux_{machine}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
        (tmp_path / "a.so").write_bytes(file.read(NATIVE))
    assert {f"keras_norms/{name}" for name in want} <= held
    assert "keras_norms/py.typed" in held
    assert {name.split("/")[0].split("-")[0] for name in held} == {
        "keras_norms",
        "keras_norms_command.py",
    }
    assert library.refusal(tmp_path / "a.so") is None


@pytest.mark.packaging
@needs_compiler
@pytest.mark.parametrize("isolation", [(), ("--no-build-isolation",)], ids=["isolated", "open"])
def test_install_where_tensorflow_is(clone, tmp_path, isolation):
    there = Environment(tmp_path / "env", sees_ours=True)
    if isolation:  # the one that comes with Python 3.11 is too old
        there.run("pip", "install", f"setuptools=={importlib.metadata.version('setuptools')}")
    there.run("pip", "install", "--no-deps", *isolation, clone)
    state = json.loads(there.run("keras-norms", "doctor", "--json").stdout)
    assert state["fused"]
    assert str(tmp_path / "env") in state["library"]
    assert state["library"].endswith(NATIVE)
    there.run("python", "-c", SHORT)


@pytest.mark.packaging
def test_install_without_compiler(clone, tmp_path):
    there = Environment(tmp_path / "env", sees_ours=True)
    nowhere = {"PATH": str(there.bin), "CXX": ""}
    there.run("pip", "install", "--no-deps", clone, **nowhere)
    there.run("python", "-c", SHORT)
    done = there.run("keras-norms", "doctor", check=False, **nowhere)
    assert done.returncode == 1
    assert "apt-get install g++" in done.stdout
    if build.find_compiler():
        there.run("keras-norms", "build")
        assert there.run("keras-norms", "doctor").returncode == 0


@pytest.mark.packaging
def test_install_without_tensorflow(clone, tmp_path):
    there = Environment(tmp_path / "env")
    done = there.run("pip", "install", "-v", "--no-deps", clone)
    assert "installing without the compiled op. There is no TensorFlow" in done.stdout + done.stderr
    done = there.run("keras-norms", "doctor", check=False)
    assert done.returncode == 1
    assert "Run `pip install keras`." in done.stdout
    there.run("pip", "install", f"keras=={importlib.metadata.version('keras')}")
    done = there.run("keras-norms", "doctor", check=False)
    assert done.returncode == 1
    assert "pip install keras-norms[tensorflow]" in done.stdout
    there.run("pip", "install", "jax")
    there.run("python", "-c", SHORT, KERAS_BACKEND="jax")
    done = there.run("keras-norms", "build", check=False)
    assert done.returncode == 1
    assert "No module named 'tensorflow'" in done.stderr
