"""The examples, run as a user runs them."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_norms import library

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "images", "epochs"),
    [("digits", 359, 3), pytest.param("mnist", 1000, 4, marks=pytest.mark.slow)],
)
def test_digits(data, images, epochs, tmp_path):
    result = run("digits.py", "--data", data, "--epochs", epochs, "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr

    rows = dict(re.findall(r"^(\S.*?)  +(\d+\.\d\d%.*)$", result.stdout, re.MULTILINE))
    assert list(rows) == ["Keras", ".keras, reloaded", "SavedModel", "LiteRT"]
    assert len({row.split("%")[0] for row in rows.values()}) == 1
    assert float(rows["Keras"].split("%")[0]) >= 95
    assert all(f"{images} of {images}" in row for row in rows.values())
    assert re.search(r"^kernel  (fused, for \w+: |portable: )", result.stdout, re.MULTILINE)
    assert re.search(r"^tensors above rank 4 +0$", result.stdout, re.MULTILINE)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "digits.tflite").stat().st_size < 200_000
    # Nothing but the progress bar goes to the error stream.
    assert not [
        line for line in re.split(r"[\r\n]+", result.stderr) if line[:6] not in ("", "train:")
    ]


# Keras 3.15 reads TensorFlow's variables by an interface that NumPy 2.4 calls old.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_digits_that_cannot_be_learned_fail(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    random = np.random.default_rng(0)
    noise = random.random((64, 8, 8, 1), "float32"), random.integers(0, 10, 64)
    monkeypatch.setattr(digits, "load", lambda name: (noise, noise))
    monkeypatch.setattr(sys, "argv", ["digits.py", "--epochs", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        digits.main()
    assert caught.value.code == "Failed: fewer than 95 % of the test images are read right."


@pytest.mark.slow
def test_gan(tmp_path):
    """Saved and loaded, its models answer the same; the kernels' norms are 1: it checks itself."""
    result = run("gan.py", "--epochs", 12, "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    norms = re.search(r"^spectral norms +(.*)$", result.stdout, re.MULTILINE).group(1).split(", ")
    assert len(norms) == 4 and all(abs(float(norm) - 1) < 0.05 for norm in norms)
    assert (tmp_path / "gan.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} >= {
        "gan_generator.keras",
        "gan_discriminator.keras",
    }


@pytest.mark.slow
def test_characters(tmp_path):
    """Loaded, exported and with more padding it answers the same: it checks itself."""
    result = run("characters.py", "--epochs", 10, "--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert float(re.search(r"F1 ([\d.]+)%", result.stdout).group(1)) >= 70
    assert (tmp_path / "characters.keras").exists()
    assert (tmp_path / "characters" / "saved_model.pb").exists()


def litert_norms(folder, *, options=()):
    """The C++ example, built by CMake."""
    import ai_edge_litert

    runtime = Path(ai_edge_litert.__file__).parent / "libLiteRt.so"
    commands = (
        ["cmake", "-S", EXAMPLES / "litert_cpp", "-B", folder, f"-DLITERT_LIBRARY={runtime}"],
        ["cmake", "--build", folder],
    )
    for command, more in zip(commands, (options, ()), strict=True):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "litert_norms"


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs CMake")
@pytest.mark.parametrize(
    "compiled", ["before", pytest.param("with it", marks=pytest.mark.slow)], ids=str
)
def test_litert_cpp(compiled, tmp_path):
    """LiteRT's C interface runs fused norms, beside XNNPACK, with the right result."""
    import test_tflite_custom_op as op

    options = ()
    if compiled == "before":
        if reason := library.tflite_refusal(library.tflite_destination()):
            pytest.skip(reason)
        options = (f"-DKERAS_NORMS_LIBRARY={library.tflite_destination()}",)
    program = litert_norms(tmp_path / "build", options=options)
    case = op.Case(*op.CASES["group"], around=True)
    x = case.data()
    (tmp_path / "a.tflite").write_bytes(case.file())
    (tmp_path / "x").write_bytes(x.tobytes())
    command = [program, "a.tflite", "5", "x", "y"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^5 runs: median \d+\.\d us, best \d+\.\d us$", done.stdout, re.MULTILINE)
    got = np.frombuffer((tmp_path / "y").read_bytes(), "float32").reshape(x.shape)
    case.check(got, x)
