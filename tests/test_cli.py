"""The `keras-norms` command, mostly as a user runs it: in a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matrix
import pytest

from keras_norms import cli, compiling, library
from keras_norms.catalog import CATALOG

COMMAND = Path(cli.__file__).resolve().parent.parent / "keras_norms_command.py"


def command(*arguments, **environment):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run(
        [sys.executable, COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def fitting():
    return library.refusal(library.library_path())


needs_library = pytest.mark.skipif(fitting() is not None, reason=f"no library: {fitting()}")


@needs_library
def test_doctor_where_all_is_well():
    done = command("doctor")
    assert done.returncode == 0, done.stdout
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["keras-norms"] == library.VERSION
    assert lines["tensorflow"] == library.tensorflow().version
    assert lines["library"] == str(library.library_path())
    assert lines["fused"].startswith("op        works on CPU, XLA:CPU with ")
    assert lines["XLA"] == "runs the op too"


@needs_library
def test_doctor_as_json():
    done = command("doctor", "--json")
    assert done.returncode == 0
    state = json.loads(done.stdout)
    assert (state["fused"], state["xla"], state["why_not"], state["cure"]) == (
        True,
        True,
        None,
        None,
    )
    assert state["record"] == library.read_record(library.library_path())
    assert state["simd"] in ("baseline", "avx2", "avx512")
    assert state["packages"]["keras"]


@needs_library
def test_doctor_names_the_chosen_instructions():
    assert json.loads(command("doctor", "--json", KERAS_NORMS_SIMD="baseline").stdout)["simd"] == (
        "baseline"
    )


@pytest.mark.slow
def test_doctor_without_the_library(tmp_path):
    missing = str(tmp_path / "none.so")
    done = command("doctor", "--json", KERAS_NORMS_LIBRARY=missing)
    assert done.returncode == 1
    state = json.loads(done.stdout)
    assert state["why_not"] == f"The compiled op is missing ({missing}). Run `keras-norms build`."
    assert (state["fused"], state["library"], state["destination"]) == (False, None, missing)
    assert state["cure"] == (library.CURE if state["compiler"] else compiling.COMPILER_CURE)
    done = command("doctor", KERAS_NORMS_LIBRARY=missing)
    assert done.returncode == 1
    assert "fused op        does not work; the portable path computes" in done.stdout
    assert f"  why           {state['why_not']}" in done.stdout
    assert f"  cure          {state['cure']}" in done.stdout


@pytest.mark.slow
def test_doctor_without_a_compiler(tmp_path):
    done = command(
        "doctor", "--json", KERAS_NORMS_LIBRARY=str(tmp_path / "none.so"), CXX="no-such-compiler"
    )
    state = json.loads(done.stdout)
    assert state["compiler"] is None
    assert state["cure"] == compiling.COMPILER_CURE


def test_doctor_with_a_library_for_another_tensorflow(tmp_path):
    file = tmp_path / "a.so"
    file.write_bytes(b'\x7fELF KERAS_NORMS_RECORD{"tensorflow": "2.20.0"}\0')
    state = json.loads(command("doctor", "--json", KERAS_NORMS_LIBRARY=str(file)).stdout)
    assert state["why_not"].startswith(f"{file} was built for TensorFlow 2.20.0, and ")
    assert state["record"] == {"tensorflow": "2.20.0"}


def test_doctor_without_tensorflow(tmp_path):
    """A module named tensorflow that cannot be imported stands before the true one."""
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError('No TensorFlow here')\n")
    done = command("doctor", "--json", PYTHONPATH=str(tmp_path), KERAS_BACKEND="tensorflow")
    assert done.returncode == 1
    assert done.stderr == ""
    state = json.loads(done.stdout)
    assert state["packages"]["tensorflow"] is None
    assert state["why_not"] == (
        "TensorFlow is not installed, and Keras needs it: ModuleNotFoundError: No TensorFlow here"
    )
    assert state["cure"].startswith("Run `pip install keras-norms[tensorflow]`")


@pytest.mark.slow
def test_doctor_on_another_backend():
    pytest.importorskip("torch")
    state = json.loads(command("doctor", "--json", KERAS_BACKEND="torch").stdout)
    assert (state["backend"], state["fused"]) == ("torch", False)
    assert state["cure"] == ("Nothing: the op serves TensorFlow; the portable path serves torch.")


def test_doctor_where_the_import_ends_the_process(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'keras': import os; os.abort()\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = command("doctor", "--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert json.loads(done.stdout)["why_not"] == (
        "`import keras_norms` fails: the process ended by signal 6."
    )


def test_list_names_every_layer(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "fused", "paper"]
    assert len(lines) == 1 + len(CATALOG)
    for line, row in zip(lines[1:], CATALOG, strict=True):
        assert line.split()[:2] == [row.name, "yes" if row.fused else "no"]
        assert line.endswith(row.paper)


def test_list_prints_the_support_matrix(capsys):
    assert cli.main(["list", "--matrix"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", head) == ["layer", *matrix.COLUMNS]
    assert [line.split()[0] for line in lines] == [row.name for row in CATALOG]
    for line in lines:
        cells = re.split("  +", line)[1:]
        assert len(cells) == len(matrix.COLUMNS)
        assert f"| `{line.split()[0]}` | {' | '.join(cells)} |" in matrix.README.read_text()


@needs_library
def test_build_has_nothing_to_do():
    done = command("build")
    assert (done.returncode, done.stderr) == (0, "")
    version = library.tensorflow().version
    assert done.stdout == (f"{library.library_path()} fits TensorFlow {version}: nothing to do.\n")


def test_build_without_a_compiler(tmp_path):
    done = command("build", "--output", str(tmp_path / "a.so"), CXX="no-such-compiler")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("keras-norms build: CXX names no command that exists.")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("doctor", "--nonsense")])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: keras-norms" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"keras-norms {library.VERSION}\n"


@pytest.mark.slow
def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "keras_norms.build", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--force" in done.stdout


def test_a_reader_that_stops_early_is_no_error():
    """As `keras-norms list --matrix | head`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, COMMAND, "list", "--matrix"]
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        process.stdout.close()
        assert "BrokenPipeError" not in process.stderr.read()
    assert process.returncode == 0
