"""The examples, run as a user runs them."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("data", "images", "epochs"), [("digits", 359, 3), ("mnist", 1000, 4)])
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
