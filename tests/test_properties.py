"""What holds for every geometry, on geometries drawn at random."""

import itertools

import numpy as np
import support
import tensorflow as tf
from conftest import need_fused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_norms as kn
from keras_norms.geometry import geometry
from keras_norms.normalize import normalize

# No deadline: the machine may be busy. The examples are the same in every run.
drawn = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33])
seeds = st.integers(0, 2**32 - 1)
means = st.sampled_from(support.MEANS)


@st.composite
def layers(draw):
    """A layer and the shape of an input of at most 40,000 elements."""
    name = draw(st.sampled_from(sorted(support.REFERENCE)))
    least = 2 if name in ("GroupNormalization", "InstanceNormalization") else 1
    rank = draw(st.integers(least, 5))
    shape = draw(st.lists(sizes, min_size=rank, max_size=rank))
    while np.prod(shape) > 40_000:
        shape[int(np.argmax(shape))] = 2
    arguments = {"epsilon": draw(st.sampled_from([1e-3, 1e-5, 1.0]))}
    if name in ("LayerNormalization", "RMSNormalization"):
        axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
        signed = [a - rank * draw(st.booleans()) for a in axes]
        arguments["axis"] = signed if len(signed) > 1 or draw(st.booleans()) else signed[0]
    else:
        first = least - 1
        axis = draw(st.integers(first, rank - 1))
        arguments["axis"] = axis - rank * draw(st.booleans())
        if name == "GroupNormalization":
            groups = [g for g in range(1, shape[axis] + 1) if shape[axis] % g == 0]
            arguments["groups"] = draw(st.sampled_from([*groups, -1]))
    if name != "RMSNormalization":
        arguments["center"], arguments["scale"] = draw(st.booleans()), draw(st.booleans())
    return getattr(kn, name)(**arguments), tuple(shape)


def run_eagerly(layer, x, dy):
    batch = {"training": True} if isinstance(layer, kn.BatchNormalization) else {}
    return support.runner(layer, "eager", **batch)(x, dy)


@given(layers(), means, seeds)
@drawn
def test_fused_and_portable_are_the_reference(layer_and_shape, mean, seed):
    need_fused()
    layer, shape = layer_and_shape
    support.built(layer, shape)
    draw = np.random.default_rng(seed)
    x = draw.normal(mean, 1, shape).astype("float32")
    dy = draw.normal(size=shape).astype("float32")
    previous = kn.get_kernel()
    try:
        for kernel in ("portable", "fused"):
            kn.set_kernel(kernel)
            support.compare(layer, x, dy, run_eagerly(layer, x, dy), kernel, what=kernel)
    finally:
        kn.set_kernel(previous)


@given(layers(), seeds)
@drawn
def test_data_type_is_only_a_rounding(kernel, layer_and_shape, seed):
    """float64 gives what float32 gives; half inputs what their float32 values give, rounded."""
    layer, shape = layer_and_shape
    support.built(layer, shape)
    draw = np.random.default_rng(seed)
    half = draw.normal(1, 1, shape).astype("float16")
    results = {}
    for dtype in ("float16", "float32", "float64"):
        twin = type(layer).from_config({**layer.get_config(), "dtype": support.policy(dtype)})
        twin.build(shape)
        twin.set_weights(layer.get_weights())
        results[dtype] = run_eagerly(twin, half.astype(dtype), half.astype(dtype)).y
    gamma, _ = support.parameters(layer)
    atol = support.FORWARD[kernel] * support.largest(gamma)
    support.close(results["float32"], results["float64"], atol=atol, rtol=2.0**-24)
    support.close(results["float16"], results["float64"], atol=atol, rtol=2.0**-11)


@given(layers(), means, seeds, st.data())
@drawn
def test_axes_may_be_anywhere(kernel, layer_and_shape, mean, seed, data):
    """A transposed input with its axes renamed gives the transposed result."""
    layer, shape = layer_and_shape
    rank = len(shape)
    keep = 1 if isinstance(layer, kn.GroupNormalization | kn.InstanceNormalization) else 0
    order = [*range(keep), *data.draw(st.permutations(range(keep, rank)))]
    axes = [layer.axis] if isinstance(layer.axis, int) else sorted(layer.axis)
    # Non-negative names, in the order that gamma has them: each layer sorts what it is given.
    old = sorted(a % rank for a in axes)
    config = layer.get_config()
    several = isinstance(layer.axis, list)
    first = type(layer).from_config({**config, "axis": old if several else old[0]})
    new = [order.index(a) for a in old]
    second = type(layer).from_config({**config, "axis": new if several else new[0]})
    support.built(first, shape)
    moved = tuple(shape[a] for a in order)
    second.build(moved)
    for source, target in zip(first.weights, second.weights, strict=True):
        value = source.numpy()
        if value.ndim == len(old):
            value = value.transpose(np.argsort(new))
        target.assign(value)
    draw = np.random.default_rng(seed)
    x, dy = draw.normal(mean, 1, shape).astype("float32"), draw.normal(size=shape).astype("float32")
    one = run_eagerly(first, x, dy)
    two = run_eagerly(second, x.transpose(order), dy.transpose(order))
    # Each is within its bound of the same numbers.
    gamma, _ = support.parameters(first)
    atol = 2 * support.FORWARD[kernel] * support.largest(gamma)
    support.close(two.y, one.y.transpose(order).astype("float64"), atol=atol, rtol=2.0**-23)
    support.compare(second, x.transpose(order), dy.transpose(order), two, kernel)


@given(st.tuples(sizes, sizes, sizes, sizes), means, seeds)
@drawn
def test_norms_that_are_one_another(kernel, shape, mean, seed):
    """The same numbers by two names, bitwise where they are one view of the same input."""
    draw = np.random.default_rng(seed)
    x = tf.constant(draw.normal(mean, 1, shape), "float32")
    n, _, _, c = shape
    gamma, beta = draw.normal(size=(2, c)).astype("float32")
    instance = kn.ops.instance_norm(x, gamma, beta)
    np.testing.assert_array_equal(kn.ops.group_norm(x, c, gamma, beta), instance)
    # Batch norm of one sample is instance norm: the same sums over the same memory.
    atol = 2 * support.FORWARD[kernel] * np.abs(gamma).max()
    for i in (0, n - 1):
        batch = kn.ops.batch_norm(x[i : i + 1], gamma, beta).y
        want = instance[i : i + 1].numpy().astype("float64")
        support.close(batch, want, atol=atol, rtol=2.0**-23)
    # One group of one position is layer norm of the last axis.
    rows = tf.reshape(x, (-1, c))
    group = kn.ops.group_norm(rows, 1, gamma, beta)
    layer = kn.ops.layer_norm(rows, gamma, beta).numpy().astype("float64")
    support.close(group, layer, atol=atol, rtol=2.0**-23)
    # Layer norm of everything but the samples, with the same gamma everywhere, is one group.
    layer = kn.ops.layer_norm(x, axis=[1, 2, 3]).numpy().astype("float64")
    support.close(kn.ops.group_norm(x, 1), layer, atol=2 * support.FORWARD[kernel])
    # RMS norm of what has mean 0 is layer norm.
    centred = rows - tf.reduce_mean(rows, 1, keepdims=True)
    if mean == 0:
        rms = kn.ops.rms_norm(centred, gamma, epsilon=1e-3)
        layer = kn.ops.layer_norm(rows, gamma, epsilon=1e-3).numpy().astype("float64")
        # The mean taken off in float32 is within a rounding or two of the sum's terms.
        slack = 40 * support.EPS32 * np.abs(rows).max() * np.abs(gamma).max()
        support.close(rms, layer, atol=atol + slack, rtol=2.0**-23)


@given(layers(), seeds, st.sampled_from([0.5, 4.0, 1024.0]), st.sampled_from([0, 64, -4096]))
@drawn
def test_scale_and_offset_of_the_input_do_not_matter(kernel, layer_and_shape, seed, a, b):
    """y(a * x + b) = y(x) with epsilon 0; for RMS b = 0. x is made so that a * x + b is exact."""
    layer, shape = layer_and_shape
    x = np.round(np.random.default_rng(seed).normal(0, 1, shape) * 256).astype("float32") / 256
    config = {**layer.get_config(), "epsilon": 0.0}
    layer = support.built(type(layer).from_config(config), shape)
    rms = isinstance(layer, kn.RMSNormalization)
    moved = x * np.float32(a) + np.float32(0 if rms else b)
    with np.errstate(all="ignore"):  # without spread or epsilon: 0 / 0
        want, _ = support.expected(layer, x, x)
    fine = np.isfinite(want.y)
    if (want.variance < 1e-3).any():
        return  # hardly any spread: nothing, or rounding, is being normalized
    np.testing.assert_array_equal(moved, (x.astype("float64") * a + (0 if rms else b))[...])
    gamma, _ = support.parameters(layer)
    atol = 2 * support.FORWARD[kernel] * support.largest(gamma)
    batch = {"training": True} if isinstance(layer, kn.BatchNormalization) else {}
    results = [np.asarray(layer(v, **batch)).astype("float64") for v in (x, moved)]
    support.close(results[1][fine], results[0][fine], atol=atol, rtol=2.0**-23)


@given(layers(), seeds)
@drawn
def test_results_have_the_moments_they_should(kernel, layer_and_shape, seed):
    """Without gamma and beta: mean 0, variance v / (v + epsilon), whatever the geometry."""
    layer, shape = layer_and_shape
    batch = isinstance(layer, kn.BatchNormalization)
    apart = "nothing" if batch else "positions"
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, kn.GroupNormalization | kn.InstanceNormalization):
        apart = "samples"
        groups = -1 if isinstance(layer, kn.InstanceNormalization) else groups
    view = geometry(shape, layer.axis, apart=apart, groups=-1 if batch else groups)
    x = np.random.default_rng(seed).normal(1e2, 1, shape).astype("float32")
    y, _, variance = normalize(tf.constant(x), view, epsilon=layer.epsilon)
    moved = np.asarray(y).transpose(view.order or range(len(shape))).astype("float64")
    moved = moved.reshape(view.view(moved.shape))
    size = np.sqrt(moved[0, :, 0].size)  # no element of a group of n is beyond sqrt(n)
    bound = support.FORWARD[kernel] + support.EPS32 * size
    support.close(moved.mean((1, 3, 4)), np.zeros(moved.shape[::2][:2]), atol=bound)
    variance = np.asarray(variance).astype("float64").reshape(moved.shape[::2][:2])
    want = variance / (variance + layer.epsilon)
    support.close(moved.var((1, 3, 4)), want, atol=4 * bound)


def test_every_kind_of_layer_is_drawn():
    """The strategy reaches each layer, several ranks and both orders of axes."""
    seen = set()

    @given(layers())
    @drawn
    def look(layer_and_shape):
        layer, shape = layer_and_shape
        seen.add((type(layer).__name__, len(shape)))

    look()
    assert {name for name, _ in seen} == set(support.REFERENCE)
    assert {rank for _, rank in seen} == {1, 2, 3, 4, 5}
    assert len(seen) > len(list(itertools.product(support.REFERENCE, range(2))))
