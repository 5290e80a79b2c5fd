"""Fixtures of all tests. What the tests share beside them is in `support.py`.

Warnings are errors (pyproject.toml), and none is ignored for these files.
"""

import gc
import os

# Before TensorFlow is imported. The tests are of the CPU; logs below errors are noise here.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import matrix
import numpy as np
import pytest


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "supports(feature): a contract that the support matrix shows"
    )
    config.pluginmanager.register(matrix.Plugin(), "support-matrix")


def pytest_collection_finish():
    """TensorFlow and the tests themselves stay: looking through them again and again takes 10 %."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def rng():
    return np.random.default_rng(20180322)


def need_fused():
    """Skips the test, or fails it under KERAS_NORMS_REQUIRE_FUSED=1, without the compiled op."""
    import keras_norms as kn

    info = kn.kernel_info()
    if info.fused:
        return
    if os.environ.get("KERAS_NORMS_REQUIRE_FUSED", "0") not in ("", "0"):
        pytest.fail(f"The compiled op is required and missing: {info.why_not}")
    pytest.skip(f"fused: {info.why_not}")


@pytest.fixture(params=["portable", "fused"])
def kernel(request):
    """Runs the test on each path."""
    import keras_norms as kn

    if request.param == "fused":
        need_fused()
    previous = kn.get_kernel()
    kn.set_kernel(request.param)
    yield request.param
    kn.set_kernel(previous)


@pytest.fixture
def fused():
    """Runs the test on the compiled op only."""
    import keras_norms as kn

    need_fused()
    previous = kn.get_kernel()
    kn.set_kernel("fused")
    yield
    kn.set_kernel(previous)


@pytest.fixture(params=["eager", "graph", "xla"])
def mode(request):
    """How the function under test runs: as it is, in `tf.function`, or with `jit_compile=True`."""
    return request.param
