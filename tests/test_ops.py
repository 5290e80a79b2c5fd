"""The functional face: the layers' own computation on tensors."""

import logging

import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf
from rows import CLASSIC

import keras_norms as kn

# name: shape, the op with its arguments, the reference with its arguments, shape of the parameters.
CASES = {
    "layer": ((3, 5, 7), kn.ops.layer_norm, reference.layer_norm, {"epsilon": 1e-5}, (7,)),
    "layer_axes": (
        *((3, 5, 7), kn.ops.layer_norm, reference.layer_norm, {"axis": [1, -1]}, (7, 5)),
    ),
    "group": ((3, 5, 7, 6), kn.ops.group_norm, reference.group_norm, {"groups": 2}, (6,)),
    "group_first": (
        *((3, 6, 5, 7), kn.ops.group_norm, reference.group_norm, {"groups": 3, "axis": 1}, (6,)),
    ),
    "instance": ((3, 5, 7), kn.ops.instance_norm, reference.instance_norm, {"epsilon": 1e-5}, (7,)),
    "batch": ((3, 5, 7), kn.ops.batch_norm, reference.batch_norm, {"epsilon": 1e-5}, (7,)),
    "batch_first": ((3, 7, 5), kn.ops.batch_norm, reference.batch_norm, {"axis": 1}, (7,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("with_gamma, with_beta", [(True, True), (True, False), (False, False)])
def test_matches_reference(name, with_gamma, with_beta, kernel, mode):
    shape, op, want_of, arguments, parameter_shape = CASES[name]
    draw = np.random.default_rng(3)
    gamma, beta = draw.normal(size=(2, *parameter_shape)).astype("float32")
    gamma, beta = gamma if with_gamma else None, beta if with_beta else None
    run = support.compiled(lambda x: op(x, gamma=gamma, beta=beta, **arguments), mode)
    for mean in support.MEANS:
        x = draw.normal(mean, 1, shape).astype("float32")
        got = run(tf.constant(x))
        want = want_of(x, gamma, beta, **arguments)
        atol = support.FORWARD[kernel] * support.largest(gamma)
        if isinstance(got, tuple):
            np.testing.assert_allclose(got.mean, want.mean.ravel(), rtol=2e-7, atol=1e-6)
            np.testing.assert_allclose(got.variance, want.variance.ravel(), rtol=4e-5)
            got = got.y
        support.close(got, want.y, atol=atol, rtol=2.0**-24, what=f"mean {mean:g}")


@pytest.mark.parametrize("axis, parameter_shape", [(-1, (7,)), ([1, -1], (7, 5))])
def test_rms(axis, parameter_shape, kernel, mode, rng):
    x = rng.normal(2, 1, (3, 5, 7)).astype("float32")
    gamma = rng.normal(size=parameter_shape).astype("float32")
    for scale in (gamma, None):
        got = support.compiled(lambda x, s=scale: kn.ops.rms_norm(x, s, axis=axis), mode)(
            tf.constant(x)
        )
        want = reference.rms_norm(x, scale, axis=axis).y
        support.close(got, want, atol=support.FORWARD[kernel] * support.largest(scale))


@pytest.mark.parametrize("axis", [-1, 1])
def test_batch_norm_by_given_statistics(axis, kernel, mode, rng):
    shape = (3, 5, 7)
    x = rng.normal(1e2, 1, shape).astype("float32")
    gamma, beta = rng.normal(size=(2, shape[axis])).astype("float32")
    mean = rng.normal(1e2, 1, shape[axis]).astype("float32")
    variance = rng.uniform(0.5, 2, shape[axis]).astype("float32")
    options = {"axis": axis, "epsilon": 1e-5}

    def run(x):
        return tuple(kn.ops.batch_norm(x, gamma, beta, mean=mean, variance=variance, **options))

    got = support.compiled(run, mode)(tf.constant(x))
    want = reference.frozen_batch_norm(x, gamma, beta, mean, variance, **options)
    bound = 8 * support.EPS32 * (1 + (mean / np.sqrt(variance)).max()) * support.largest(gamma)
    support.close(got[0], want, atol=bound)
    np.testing.assert_array_equal(got[1], mean)
    np.testing.assert_array_equal(got[2], variance)


def test_batch_norm_mask(kernel, rng):
    x = rng.normal(size=(3, 5, 7)).astype("float32")
    mask = rng.uniform(size=(3, 5)) < 0.5
    got = kn.ops.batch_norm(x, mask=mask)
    want = reference.batch_norm(x, None, None, where=mask[..., None])
    support.close(got.y, want.y, atol=2e-5)  # masks run portable
    support.close(got.mean, want.mean.ravel(), atol=1e-6)  # of size 1: a few roundings
    support.close(got.variance, want.variance.ravel(), rtol=4e-5, atol=0)


@pytest.mark.parametrize("row", CLASSIC, ids=lambda row: row.name)
def test_is_the_layer(row, kernel, rng):
    layer = support.built(row.cls(**row.arguments), row.shape)
    x = rng.normal(1e2, 1, row.shape).astype("float32")
    op = {
        "BatchNormalization": kn.ops.batch_norm,
        "LayerNormalization": kn.ops.layer_norm,
        "InstanceNormalization": kn.ops.instance_norm,
        "GroupNormalization": kn.ops.group_norm,
        "RMSNormalization": kn.ops.rms_norm,
    }[row.name]
    arguments = {"axis": layer.axis, "epsilon": layer.epsilon}
    if row.name == "GroupNormalization":
        arguments["groups"] = layer.groups
    gamma, beta = support.parameters(layer)
    if beta is not None:
        arguments["beta"] = beta
    got = op(x, gamma=gamma, **arguments)
    if row.name == "BatchNormalization":
        np.testing.assert_array_equal(got.y, layer(x, training=True))
    else:
        np.testing.assert_array_equal(got, layer(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "bool"])
def test_types(dtype, kernel):
    x = tf.cast(tf.reshape(tf.range(12) % 3 % 2, (3, 4)), dtype)
    got = kn.ops.layer_norm(x, epsilon=1e-2)
    assert got.dtype == ("float32" if dtype in ("int32", "bool") else dtype)
    want = reference.layer_norm(x.numpy(), None, None, epsilon=1e-2).y
    support.close(got, want, atol=1e-6, rtol=support.ROUNDING.get(dtype, 0))


def test_arrays_and_lists_are_tensors(kernel):
    got = kn.ops.layer_norm([[1.0, 3.0], [5.0, 9.0]], [1.0, 2.0], [0.0, 1.0], epsilon=0.0)
    support.close(got, [[-1, 3], [-1, 3]], atol=4 * support.EPS32)


def test_errors():
    x = np.zeros((2, 3, 6), "float32")
    with pytest.raises(ValueError, match=r"`groups` must .* groups=4, channels=6"):
        kn.ops.group_norm(x, 4)
    with pytest.raises(ValueError, match=r"Give `mean` and `variance`, or none.*variance=None"):
        kn.ops.batch_norm(x, mean=np.zeros(6))
    with pytest.raises(ValueError, match=r"`gamma` must have .*\(6,\)"):
        kn.ops.layer_norm(x, np.ones(5, "float32"))
    with pytest.raises(TypeError, match="use the layer on symbolic inputs"):
        kn.ops.layer_norm(keras.Input((6,)))


@pytest.mark.parametrize("x", [np.array([[1j, 2, 3]], "complex64"), "abc"])
def test_what_is_no_real_number_is_refused(x):
    with pytest.raises(
        TypeError, match=r"must be of real numbers\. Received: dtype=(complex64|string)"
    ):
        kn.ops.layer_norm(x)


def test_in_a_function_that_autograph_rewrites(kernel):
    """As `tf.function` does by itself. What it does not understand it says in a warning."""
    said = []
    handler, logger = logging.Handler(), tf.get_logger()
    handler.emit = lambda record: said.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("WARNING")
    try:

        @tf.function
        def run(x):
            return kn.ops.layer_norm(x, axis=0) + kn.ops.group_norm(x, 3) + kn.ops.rms_norm(x)

        run(tf.constant([[1.0, 2.0, 4.0]]))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said == []
