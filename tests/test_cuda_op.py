"""The op as on a GPU, but for the GPU: its CUDA glue on the CPU, with the driver of tests/cuda.

`make test-cuda` builds that library and sets the environment that this needs.
"""

import ctypes
import functools
import os

import numpy as np
import pytest
import support
import tensorflow as tf

import keras_norms as kn

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("fused")]

LAYERS = {
    "layer": (lambda **k: kn.LayerNormalization(epsilon=0.1, **k), (3, 22)),
    "layer_of_a_row_in_pieces": (lambda **k: kn.LayerNormalization(**k), (2, 4133)),
    "layer_of_two_axes": (lambda **k: kn.LayerNormalization(axis=(1, 2), **k), (3, 5, 8)),
    "layer_by_clusters": (lambda **k: kn.LayerNormalization(axis=(1, 2), **k), (2, 130, 256)),
    "rms": (lambda **k: kn.RMSNormalization(**k), (5, 3, 67)),
    "group": (lambda **k: kn.GroupNormalization(2, **k), (3, 5, 7, 22)),
    "group_channels_first": (lambda **k: kn.GroupNormalization(3, axis=1, **k), (2, 6, 5, 3)),
    "instance_channels_first": (lambda **k: kn.InstanceNormalization(axis=1, **k), (2, 3, 7, 8)),
    "batch": (lambda **k: kn.BatchNormalization(**k), (7, 5, 3, 11)),
    "batch_channels_first": (lambda **k: kn.BatchNormalization(axis=1, **k), (3, 5, 7, 2)),
    "batch_held": (lambda **k: kn.BatchNormalization(**k), (7, 9, 11, 16)),
    "batch_held_channels_first": (lambda **k: kn.BatchNormalization(axis=1, **k), (9, 3, 16, 24)),
    "one_element_a_group": (lambda **k: kn.InstanceNormalization(**k), (1, 1, 1, 2)),
}


def calls(function: str) -> int:
    return ctypes.CDLL("libcuda.so.1").fake_cuda_calls(function.encode())


def launches() -> int:
    return calls("cuLaunchKernel") + calls("cuLaunchKernelEx")


@pytest.fixture(autouse=True)
def on_cuda(fused):
    """The test fails if nothing is launched."""
    assert os.environ.get("FAKE_CUDA_PRIMARY"), "run `make test-cuda`"
    before = launches()
    yield
    assert launches() > before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_gradients(name, dtype, mode):
    make, shape = LAYERS[name]
    layer = make(dtype=support.policy(dtype))
    means = (0.0, 1e4) if dtype == "float32" else (3.0,)
    support.check(layer, shape, "fused", mode, means=means, dtype=dtype, **support.training(layer))


@pytest.mark.skipif("FAKE_CUDA_SHARED" not in os.environ, reason="not on a device that holds more")
def test_batch_normalization_by_all_blocks(mode):
    """Of a device whose blocks and clusters hold little: `tests/cuda/run` asks for one."""
    for axis, shape in ((-1, (7, 9, 11, 16)), (1, (9, 3, 16, 24))):
        layer, before = kn.BatchNormalization(axis=axis), calls("cooperative")
        how = support.training(layer)
        support.check(layer, shape, "fused", mode, means=(0.0, 1e4), dtype="float32", **how)
        assert calls("cooperative") >= before + 2  # forward and backward


def test_batch_normalization_in_inference(mode):
    layer, axes = support.built(kn.BatchNormalization(), (7, 5, 3, 11)), (0, 1, 2)
    draw = np.random.default_rng(0)
    layer.moving_mean.assign(draw.normal(3, 1, 11))
    layer.moving_variance.assign(draw.uniform(0.5, 2, 11))
    x, dy = (draw.normal(m, 1, (7, 5, 3, 11)).astype("float32") for m in (3, 0))
    got = support.runner(layer, mode, training=False)(x, dy)
    weights = {k: v.astype("float64") for k, v in got.weights.items()}
    scale = 1 / np.sqrt(weights["moving_variance"] + layer.epsilon)
    centred = (x - weights["moving_mean"]) * scale
    close = functools.partial(support.close, atol=4e-6 * 8)  # elements of up to 8
    close(got.y, centred * weights["gamma"] + weights["beta"], what="y")
    close(got.dx, dy * (scale * weights["gamma"]), what="dx")
    total = support.GRADIENT * np.abs(dy * centred).sum(axes).max()
    support.close(got.dgamma, (dy * centred).sum(axes), atol=total, what="dgamma")
    support.close(got.dbeta, dy.sum(axes, dtype="float64"), atol=total, what="dbeta")


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_activation(activation, mode):
    """Against the portable path, which the tests of activations hold to the reference."""
    layer = support.built(kn.GroupNormalization(4, activation=activation), (2, 3, 5, 32))
    draw = np.random.default_rng(0)
    x, dy = (draw.normal(0, 1, (2, 3, 5, 32)).astype("float32") for _ in range(2))
    got = support.runner(layer, mode)(x, dy)
    with kn.portable():
        want = support.runner(layer, "eager")(x, dy)
    support.close(got.y, want.y, atol=2e-5, what="y")  # gamma is below 2
    for name in ("dx", "dgamma", "dbeta"):
        value = getattr(want, name)
        support.close(getattr(got, name), value, atol=2e-5 * np.abs(value).max(), what=name)


def test_float16(mode):
    layer = kn.LayerNormalization(dtype="mixed_float16")
    support.check(layer, (5, 3, 72), "fused", mode, means=(0.0, 1e2), dtype="float16")


def test_in_place(mode):
    """An input that nobody else holds is overwritten: y over x."""
    layer = support.built(kn.GroupNormalization(2), (3, 5, 7, 22))
    x = np.random.default_rng(0).normal(3, 2, (3, 5, 7, 22)).astype("float32")
    got = support.compiled(lambda x: layer(x + 1), mode)(tf.constant(x))
    want = layer(tf.constant(x + 1))
    np.testing.assert_array_equal(got, want)


def test_nothing_to_normalize(mode):
    layer = support.built(kn.LayerNormalization(), (3, 22))
    support.compiled(layer, mode)(tf.ones((3, 22)))
    got = support.compiled(layer, mode)(tf.ones((0, 22)))
    assert got.shape == (0, 22)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("cuLaunchKernel", r"The launch of \w+ failed: CUDA_ERROR_LAUNCH_FAILED"),
        ("cuStreamGetCtx", r"cuStreamGetCtx failed: CUDA_ERROR_INVALID_CONTEXT"),
    ],
)
@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_failures_are_told(function, message, mode, monkeypatch):
    layer = support.built(kn.GroupNormalization(1, axis=1), (2, 3, 5, 131))
    run, x = support.compiled(layer, mode), tf.ones((2, 3, 5, 131))
    run(x)
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_CUDA_FAIL", function)
        with pytest.raises(tf.errors.InternalError, match=message):
            run(x)
    run(x)
