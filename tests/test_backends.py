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


TWICE = """
import keras, torch
import keras_norms as kn

x = torch.randn(6, 5, 2, requires_grad=True)
for make in (
    lambda: kn.SpectralNormalization(keras.layers.Dense(4), reparam=True),
    lambda: keras.layers.RNN(kn.SpectralNormalization(keras.layers.LSTMCell(3), reparam=True)),
    lambda: kn.WeightNormalization(keras.layers.Dense(4)),
    kn.SwitchableNormalization,
    kn.MixedNormalization,
    kn.BatchNormalization,
):
    layer = make()
    layer.build(tuple(x.shape))
    calls = (1, False), (2, True), (3, True)
    results = [layer(k * x, training=training) for k, training in calls]
    sum((y * y).sum() for y in results).backward()
    assert torch.isfinite(x.grad).all()
"""


def test_several_calls_before_one_backward_pass_of_pytorch():
    """Though a step of training changes the weights in place."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is missing: `make test-backends` installs it")
    env = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run([sys.executable, "-c", TWICE], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr


CELL = """
import keras, numpy as np
import keras_norms as kn

def model_of(layer):
    model = keras.Sequential([keras.Input((6, 5)), layer])
    model.compile("sgd", "mse")
    return model

def cell():
    return kn.SpectralNormalization(keras.layers.LSTMCell(3), reparam=True)

model_of(keras.layers.RNN(cell())).predict(np.ones((4, 6, 5)), verbose=0)
try:
    model_of(keras.layers.RNN(cell())).fit(np.ones((4, 6, 5)), np.zeros((4, 3)), verbose=0)
except ValueError as error:
    assert "wrap the RNN layer" in str(error), error
else:
    raise AssertionError
model_of(kn.SpectralNormalization(keras.layers.LSTM(3), reparam=True)).fit(
    np.ones((4, 6, 5)), np.zeros((4, 3)), verbose=0
)
"""


def test_spectral_norm_of_a_cell_on_jax():
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is missing: `make test-backends` installs it")
    env = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", CELL], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
