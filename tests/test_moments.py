"""Means, variances, merging and sums of the portable path, in eager mode, graphs and XLA."""

import numpy as np
import pytest
import reference
import support
import tensorflow as tf
from keras import ops

from keras_norms import moments, sums
from keras_norms.geometry import geometry

SHAPES = {
    "last": ((3, 5, 7, 11), (3,)),
    "space": ((3, 5, 7, 11), (1, 2)),
    "batch": ((3, 5, 7, 11), (0, 1, 2)),
    "batch_first": ((3, 11, 5, 7), (0, 2, 3)),
    "long_last": ((3, 4099), (1,)),
    "long_first": ((4099, 3), (0,)),
    "long_middle": ((2, 2053, 3), (1,)),
    "blocks": ((2, 4096, 3), (1,)),
    "long_and_short": ((5, 2053, 3, 2), (0, 1, 2)),
    "everything": ((3, 5, 7), (0, 1, 2)),
    "ones": ((1, 1, 7), (0, 1)),
    "of_one": ((3, 1), (1,)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_mean(name, mode):
    shape, axes = SHAPES[name]
    draw = np.random.default_rng(3)
    mean = support.compiled(lambda x: sums.mean(x, axes), mode)
    for centre in (0, 1e4):
        x = draw.normal(centre, 1, shape).astype("float32")
        want = x.astype("float64").mean(axes, keepdims=True)
        # A tree of blocks of at most 1024 terms, added in lanes: a few roundings of the mean |x|.
        atol = 16 * support.EPS32 * np.abs(x).mean()
        support.close(mean(tf.constant(x)), want, atol=atol)


@pytest.mark.parametrize("shape, axes", [((0, 3), (0,)), ((3, 0), (1,)), ((0, 0), (0, 1))])
def test_mean_of_nothing_is_zero(shape, axes, mode):
    got = support.compiled(lambda x: sums.mean(x, axes), mode)(tf.zeros(shape))
    want = [1 if a in axes else size for a, size in enumerate(shape)]
    np.testing.assert_array_equal(got, np.zeros(want))


def test_mean_over_no_axes_is_the_input(rng):
    x = tf.constant(rng.normal(size=(3, 5)))
    np.testing.assert_array_equal(sums.mean(x, ()), x)


@pytest.mark.parametrize("sizes", [(3, 5, 7), (2, 2053, 3), (1, 4096, 2), (0, 5, 3), (1, 1, 1)])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (2,)])
def test_mean_of_unknown_sizes(sizes, axes):
    """One function for every size, of three that are unknown when it is traced."""
    mean = tf.function(
        lambda x: sums.mean(x, axes), input_signature=[tf.TensorSpec([None] * 3)], autograph=False
    )
    x = np.random.default_rng(3).normal(1e2, 1, sizes).astype("float32")
    count = max(int(np.prod([sizes[a] for a in axes])), 1)
    want = x.astype("float64").sum(axes, keepdims=True) / count
    support.close(mean(x), want, atol=16 * support.EPS32 * 1e2)  # as above


@pytest.mark.parametrize(
    "shape, other", [((3, 5, 7), (3, 1, 7)), ((4099, 3), (1, 3)), ((3,), (3,))]
)
@pytest.mark.parametrize("name", ["add", "subtract", "multiply"])
def test_broadcasting_and_its_gradients(name, shape, other, mode, rng):
    x, dz = rng.normal(size=(2, *shape)).astype("float32")
    y = rng.normal(size=other).astype("float32")
    function = getattr(sums, name)

    def step(x, y):
        with tf.GradientTape() as tape:
            tape.watch((x, y))
            z = function(x, y)
        return z, *tape.gradient(z, (x, y), dz)

    z, dx, dy = support.compiled(step, mode)(tf.constant(x), tf.constant(y))
    wide_x, wide_y, wide_dz = (v.astype("float64") for v in (x, y, dz))
    want = {
        "add": (wide_x + wide_y, wide_dz, wide_dz),
        "subtract": (wide_x - wide_y, wide_dz, -wide_dz),
        "multiply": (wide_x * wide_y, wide_dz * wide_y, wide_dz * wide_x),
    }[name]
    axes = tuple(a for a, size in enumerate(other) if size == 1)
    wants = (*want[:2], want[2].sum(axes, keepdims=True))
    for got, value in zip((z, dx, dy), wants, strict=True):
        count = np.size(z) / np.size(value)
        support.close(got, value, atol=16 * support.EPS32 * count * np.abs(z).mean())  # as above


def test_second_derivatives(mode, rng):
    """d2/dx2 of sum(w * mean(x * y)**3), in float64."""
    x, y = rng.normal(size=(2, 3, 5))

    def value(x):
        return tf.reduce_sum(sums.mean(sums.multiply(x, tf.constant(y)), [1]) ** 3)

    def hessian_row(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                v = value(x)
            slope = inner.gradient(v, x)[0, 1]
        return outer.gradient(slope, x)

    got = support.compiled(hessian_row, mode)(tf.constant(x))
    want = np.zeros((3, 5))
    want[0] = 6 * (x[0] * y[0]).mean() * y[0, 1] * y[0] / 25
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)  # a dozen float64 operations


CENTRED = [
    ((3, 5, 7, 6), -1, "samples", 3),
    ((3, 6, 5, 7), 1, "samples", 2),
    ((3, 5, 6, 7), 2, "samples", 2),
    ((3, 5, 7, 11), -1, "samples", -1),
    ((3, 5, 7, 11), -1, "nothing", -1),
    ((3, 11, 5, 7), 1, "nothing", -1),
    ((3, 5, 67), -1, "positions", 1),
    ((3, 5, 7), (1, 2), "positions", 1),
    ((2, 2053, 6), -1, "samples", 3),
]


def reference_moments(x, axis, apart, groups):
    """Mean and variance shaped sample axes + (groups,), by the axes of the norm."""
    rank = x.ndim
    axes = reference.positive(axis, rank)
    if apart == "positions":
        mean, variance = reference.moments(x, axes)
        kept = [size for a, size in enumerate(x.shape) if a not in axes]
        return mean.reshape(*kept, 1), variance.reshape(*kept, 1)
    if apart == "nothing":
        want = reference.batch_norm(x, None, None, axis=axis)
        return want.mean.ravel(), want.variance.ravel()
    want = reference.group_norm(x, None, None, groups=groups, axis=axis)
    return (v.reshape(len(x), -1) for v in want[1:])


@pytest.mark.parametrize("shape, axis, apart, groups", CENTRED)
def test_centre(shape, axis, apart, groups, mode):
    view = geometry(shape, axis, apart=apart, groups=groups)
    draw = np.random.default_rng(5)

    def run(x):
        y, mean, residual, variance = moments.centre(x, view)
        return y, *(moments.compact(v, view) for v in (mean, residual, variance))

    run = support.compiled(run, mode)
    for centre in support.MEANS:
        x = draw.normal(centre, 1, shape).astype("float32")
        y, mean, residual, variance = run(tf.constant(x))
        want_mean, want_variance = reference_moments(x, axis, apart, groups)
        got = mean.numpy().astype("float64") + residual.numpy()
        # Together the two are the mean to the bound of the output, though a float32 is not.
        support.close(got, want_mean, atol=2e-5, what=f"mean {centre:g}")
        support.close(variance, want_variance, atol=2 * 2e-5, what=f"variance {centre:g}")
        total = y.numpy().astype("float64").sum()
        assert abs(total) < 2e-5 * x.size, f"{centre:g}"


@pytest.mark.parametrize("shape, axis, apart, groups", CENTRED[:7])
def test_mean_square(shape, axis, apart, groups, mode, rng):
    view = geometry(shape, axis, apart=apart, groups=groups)
    x = rng.normal(3, 1, shape).astype("float32")
    y, mean, _, got = support.compiled(
        lambda x: moments.centre(x, view, subtract_mean=False), mode
    )(tf.constant(x))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(mean, np.zeros(mean.shape))
    want, _ = reference_moments(np.square(x.astype("float64")), axis, apart, groups)
    support.close(moments.compact(got, view), want, rtol=16 * support.EPS32, atol=0)


def pieces(x, axes):
    """The moments of parts of x as `Moments`: a float32 center, and what it lacks."""
    mean, variance = (np.squeeze(v, axes) for v in reference.moments(x, axes))
    center = mean.astype("float32")
    parts = center, (mean - center).astype("float32"), variance.astype("float32")
    return moments.Moments(*map(ops.convert_to_tensor, parts))


def check_merged(got, x):
    """Of all of x but its last axis."""
    want_mean, want_variance = (v.ravel() for v in reference.moments(x, (0, 1)))
    mean = got.center.numpy().astype("float64") + got.residual.numpy()
    deviation = np.sqrt(want_variance.max())
    support.close(mean[0], want_mean, atol=8 * support.EPS32 * deviation)
    support.close(got.variance[0], want_variance, rtol=16 * support.EPS32, atol=0)


@pytest.mark.parametrize("mean", support.MEANS)
def test_merged_moments_are_direct_moments(mean, mode, rng):
    """Moments of instances, merged over the samples, are those of the batch (Chan et al. 1983).

    From float32 means alone the variance would be off by the square of their rounding, 1e-3.
    """
    x = rng.normal(mean, 1, (5, 7, 11)).astype("float32")
    x += rng.normal(0, 3, (5, 1, 11)).astype("float32")
    merge = support.compiled(lambda *parts: moments.merge(moments.Moments(*parts), 0), mode)
    check_merged(merge(*pieces(x, 1)), x)


@pytest.mark.parametrize("mean", support.MEANS)
def test_merged_moments_of_unequal_parts(mean, mode, rng):
    x = rng.normal(mean, 1, (9, 5, 11)).astype("float32")
    x[4:] += 2
    empty = moments.Moments(*[ops.zeros(11)] * 3)
    parts = [pieces(part, (0, 1)) for part in (x[:1], x[1:4], x[4:])]
    parts = [ops.stack(values) for values in zip(*parts, empty, strict=True)]
    counts = ops.convert_to_tensor(np.array([[5.0], [15.0], [25.0], [0.0]], "float32"))
    merge = support.compiled(lambda *p: moments.merge(moments.Moments(*p), 0, counts), mode)
    check_merged(merge(*parts), x)


def test_merged_moments_of_nothing():
    got = moments.merge(moments.Moments(*[ops.zeros((3, 2))] * 3), 0, ops.zeros((3, 1)))
    np.testing.assert_array_equal(np.stack(got), np.zeros((3, 1, 2)))


def test_moving_average(rng):
    old, new = rng.normal(size=(2, 7)).astype("float32")
    for momentum in (0.0, 0.9, 0.99, 1.0):
        got = moments.moving_average(
            ops.convert_to_tensor(old), ops.convert_to_tensor(new), momentum
        )
        want = reference.moving_average(old, new, momentum)
        support.close(got, want, atol=2 * support.EPS32 * np.abs([old, new]).max())
        kept = moments.moving_average(
            ops.convert_to_tensor(old), np.nan * new, momentum, valid=False
        )
        np.testing.assert_array_equal(kept, old)


COUNTS = [
    # shape, axis, apart, groups, shape of the mask
    ((2, 5, 3), -1, "nothing", -1, (2, 5)),
    ((2, 5, 3), -1, "nothing", -1, (1, 5)),
    ((2, 5, 4, 3), -1, "nothing", 1, (2, 5)),
    ((4, 3, 5, 7), 1, "samples", -1, (4, 5)),
    ((4, 3, 5, 7), 1, "samples", -1, (4, 1, 7)),
    ((4, 5, 6), -1, "samples", 2, (1, 5)),
    ((4, 5, 6), -1, "samples", 2, (4,)),
]


@pytest.mark.parametrize("shape, axis, apart, groups, mask_shape", COUNTS)
def test_element_count(shape, axis, apart, groups, mask_shape, rng):
    view = geometry(shape, axis, apart=apart, groups=groups)
    each = shape[axis] // view.groups
    others = [size for a, size in enumerate(shape) if a != axis % len(shape)]
    kept = 1 if apart == "samples" else 0
    assert moments.element_count(tf.zeros(shape), view) == int(np.prod(others[kept:])) * each
    mask = rng.uniform(size=mask_shape) < 0.5
    got = moments.element_count(tf.zeros(shape), view, tf.constant(mask))
    whole = np.broadcast_to(
        mask.reshape(mask_shape + (1,) * (len(others) - len(mask_shape))), others
    )
    want = whole.sum(tuple(range(kept, len(others)))) * each
    np.testing.assert_array_equal(np.broadcast_to(got, want.shape), want)
