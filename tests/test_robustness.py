"""The ops against an adversary: hostile shapes, attributes and memory.

What such a call may do besides failing is to end the process; so they are made in one of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import conftest
import numpy as np
import pytest
import support
import tensorflow as tf
from test_fused import (
    NHWC,
    View,
    draw,
    moments,
    moments_grad,
    normalize,
    normalize_grad,
    scale_shift,
    scale_shift_grad,
)

import keras_norms as kn

pytestmark = pytest.mark.usefixtures("fused")

SCRIPT = Path(__file__).with_name("hostile.py")


@pytest.mark.parametrize(
    "examples", [("32", "2"), pytest.param(("1000", "50"), marks=pytest.mark.slow)]
)
def test_hostile_calls_are_computed_or_refused(examples, tmp_path):
    """Of any rank, with anything wrong, in any mode: NumPy's numbers or an error, never a crash."""
    conftest.need_fused()
    last = tmp_path / "last"
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(last), *examples],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert result.returncode == 0, (
        f"{result.stdout}{result.stderr}\nexit status {result.returncode} in: {last.read_text()}"
    )


def test_an_unknown_size_may_be_zero():
    """What only the other sizes would make too large is not refused before they are all known."""
    view = View((0, 1, 1), 1, 1, 1, 1)
    shape = (0, 2**40, 2**40)

    @tf.function(input_signature=[tf.TensorSpec((None, *shape[1:]))], autograph=False)
    def run(x):
        return [*normalize(view, x), *moments(view, x)]

    x = tf.zeros(shape)
    for got, want in zip(run(x), [*normalize(view, x), *moments(view, x)], strict=True):
        assert got.shape == want.shape and got.shape[0] == 0


@pytest.mark.parametrize("op", ["normalize", "moments", "scale_shift", "layer"])
def test_bounded_sizes_are_refused_in_xla(op, rng):
    """Of tf.boolean_mask XLA knows a bound of the size only; the padding must not be normalized."""
    view = View((7, 5), 0, 1, 1, 5)
    ones = tf.ones(5)
    layer = kn.LayerNormalization()
    layer.build((None, 5))
    function = {
        "normalize": lambda x: normalize(view, x),
        "moments": lambda x: moments(view, x),
        "scale_shift": lambda x: scale_shift(view, x, ones, ones, None),
        "layer": layer,
    }[op]
    x = tf.constant(rng.normal(3, 1, (7, 5)), "float32")
    mask = tf.constant([True, True, False, True, False, True, True])

    def run(x):
        return function(tf.boolean_mask(x, mask))

    message = r"a shape that XLA knows when it compiles; .* Received: x.shape=f32\[<=7,5\]"
    with pytest.raises(tf.errors.UnimplementedError, match=message):
        tf.function(run, jit_compile=True, autograph=False)(x)
    if op == "layer":  # and what the message advises is right
        with kn.portable():
            got = tf.function(run, jit_compile=True, autograph=False)(x)
        np.testing.assert_allclose(got, run(x), rtol=0, atol=2e-5)


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def every_op(x, dy, gamma, beta, scale):
    y, mean, variance = normalize(NHWC, x, gamma, beta)
    m, residual, _ = moments(NHWC, x)
    return [
        *(y, mean, variance, m, residual),
        *normalize_grad(NHWC, dy, x, gamma, mean, variance),
        moments_grad(NHWC, x, m, residual, m, m),
        scale_shift(NHWC, x, scale, scale, scale),
        *scale_shift_grad(NHWC, dy, x, scale, scale),
    ]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")
@pytest.mark.parametrize("how", support.GRAPH_IS_SLOW)
def test_nothing_leaks(how):
    """2000 calls of each op leave memory as it was: one output that stays would be 50 MB of it."""
    view = View((2, 32, 32, 4), 1, 2, 1, 2)
    inputs = *draw(view, "float32", 1), tf.ones((2, 4))
    run = every_op
    if how != "eager":
        run = tf.function(every_op, jit_compile=how == "xla", autograph=False)
    for _ in range(300):
        run(*inputs)
    before = resident()
    for _ in range(2000):
        run(*inputs)
    assert resident() - before < 16 << 20
