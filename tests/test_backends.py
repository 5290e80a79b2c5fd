"""Every layer on JAX and on PyTorch, in a process for each in which TensorFlow is not imported.

Built, called, trained by `fit` and saved there; and outputs, losses and the weights after training
compared with the same layer on TensorFlow's portable path.
"""

import importlib.util
import json
import os
import subprocess
import sys

import backend_worker
import numpy as np
import pytest
import rows
import support

import keras_norms as kn

pytestmark = pytest.mark.backends

BACKENDS = ("jax", "torch")
# As where TensorFlow is not installed.
WITHOUT = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.path.insert(0, "tests")
runpy.run_module("backend_worker", run_name="__main__")
"""

# What a backend cannot do, and the error that says so.
EXPECTED = {("jax", "PowerNormalization"): "NotImplementedError"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What all backends are given, and TensorFlow's results."""
    folder = tmp_path_factory.mktemp("backends")
    with kn.portable():
        given = {
            f"{row.name}/{name}": value
            for row in rows.CATALOG
            for name, value in backend_worker.given_for(row).items()
        }
        np.savez(folder / "given.npz", **given)
        backend_worker.main(folder)
    return folder


def run(backend, folder):
    """A backend's results and its errors by layer, or why there are none."""
    if importlib.util.find_spec(backend) is None:
        return f"{backend} is missing: `make test-backends` installs it"
    if backend != "tensorflow":
        env = {**os.environ, "KERAS_BACKEND": backend}
        command = [sys.executable, "-c", WITHOUT, str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    with np.load(folder / f"{backend}.npz") as file:
        return dict(file), json.loads((folder / f"{backend}.json").read_text())


@pytest.fixture(scope="module")
def tensorflow(folder):
    return run("tensorflow", folder)


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, folder):
    found = run(request.param, folder)
    if isinstance(found, str):
        pytest.skip(found)
    return request.param, *found


@rows.each
def test_same_as_on_tensorflow(row, backend, tensorflow):
    want, errors = tensorflow
    assert errors[row.name] is None, errors[row.name]
    name, got, errors = backend
    if expected := EXPECTED.get((name, row.name)):
        assert errors[row.name] is not None and expected in errors[row.name]
        return
    assert errors[row.name] is None, errors[row.name]
    prefix = f"{row.name}/"
    names = {name for name in want if name.startswith(prefix)}
    assert names == {name for name in got if name.startswith(prefix)}
    assert f"{prefix}inference" in names
    for name in names:
        # Each is within the portable bound of the exact result, of size 1 or of its own.
        atol = support.FORWARD["portable"] * max(1, np.abs(want[name]).max(initial=0))
        support.close(got[name], want[name].astype("float64"), atol=atol, what=name)
