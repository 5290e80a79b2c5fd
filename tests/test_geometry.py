import itertools
import math

import numpy as np
import pytest

from keras_norms.geometry import Geometry, geometry, parameter_shape

# shape, axis, apart, groups -> (n, s, g, d, t): the table of the one concept, written by hand.
VIEWS = [
    # Batch: nothing is kept apart, each channel is a group.
    ((3, 5, 7, 11), -1, "nothing", -1, (1, 105, 11, 1, 1)),
    ((3, 11, 5, 7), 1, "nothing", -1, (1, 3, 11, 1, 35)),
    ((3, 5, 11, 7), 2, "nothing", -1, (1, 15, 11, 1, 7)),
    ((23, 7), -1, "nothing", -1, (1, 23, 7, 1, 1)),
    ((19,), 0, "nothing", -1, (1, 1, 19, 1, 1)),
    # Instance: samples apart.
    ((3, 5, 7, 11), -1, "samples", -1, (3, 35, 11, 1, 1)),
    ((3, 11, 5, 7), 1, "samples", -1, (3, 1, 11, 1, 35)),
    ((5, 7), 1, "samples", -1, (5, 1, 7, 1, 1)),
    # Group.
    ((3, 5, 7, 6), -1, "samples", 2, (3, 35, 2, 3, 1)),
    ((3, 6, 5, 7), 1, "samples", 2, (3, 1, 2, 3, 35)),
    ((3, 5, 6, 7), 2, "samples", 3, (3, 5, 3, 2, 7)),
    ((3, 6, 2, 5, 7), -4, "samples", 6, (3, 1, 6, 1, 70)),
    # Layer, RMS: positions apart.
    ((3, 5, 11), -1, "positions", 1, (15, 1, 1, 11, 1)),
    ((3, 5, 7, 11), (1, 2, 3), "positions", 1, (3, 1, 1, 385, 1)),
    ((11,), 0, "positions", 1, (1, 1, 1, 11, 1)),
    # Transposed: the sizes are of the shape in the geometry's order.
    ((3, 11, 5), 1, "positions", 1, (15, 1, 1, 11, 1)),
    ((3, 5, 7, 11), (1, 3), "positions", 1, (21, 1, 1, 55, 1)),
    ((3, 5), 0, "positions", 1, (5, 1, 1, 3, 1)),
]


def transposed(shape, order):
    return tuple(shape[a] for a in order) if order else tuple(shape)


@pytest.mark.parametrize("shape, axis, apart, groups, want", VIEWS)
def test_view(shape, axis, apart, groups, want):
    got = geometry(shape, axis, apart=apart, groups=groups)
    assert got.view(transposed(shape, got.order)) == want
    assert got.samples + got.before + got.channels + got.after == len(shape)
    assert got.groups == want[2]


@pytest.mark.parametrize("shape, axis, apart, groups, want", VIEWS)
def test_statistics_are_those_of_the_axes(shape, axis, apart, groups, want):
    """Moments over (s, d, t) of the view are those over the axes that the norm's paper names."""
    x = np.random.default_rng(3).normal(size=shape)
    view = geometry(shape, axis, apart=apart, groups=groups)
    got = x.transpose(view.order) if view.order else x
    got = got.reshape(view.view(got.shape)).mean((1, 3, 4)).ravel()
    channels = [a % len(shape) for a in ((axis,) if isinstance(axis, int) else axis)]
    if apart == "positions":
        mean = x.mean(tuple(channels))
    else:
        first = 1 if apart == "samples" else 0
        mean = x.mean(tuple(a for a in range(first, x.ndim) if a not in channels))
        count = shape[channels[0]] if groups == -1 else groups
        mean = mean.reshape(-1, count, shape[channels[0]] // count).mean(-1)
    np.testing.assert_allclose(got, mean.ravel(), rtol=0, atol=1e-15 * x.size)  # float64 sums


@pytest.mark.parametrize(
    "shape, axis, views",
    [
        ((3, 11, 5), 1, ((3, 11, 5, 1, 1), (1, 3, 1, 11, 5))),
        ((3, 5, 7, 11), (2, 1), ((3, 35, 11, 1, 1), (1, 3, 1, 35, 11))),
        ((3, 5, 7, 11), 2, ((15, 7, 11, 1, 1), (1, 15, 1, 7, 11))),
        ((3, 5), 0, ((1, 3, 5, 1, 1), (1, 1, 1, 3, 5))),
        ((None, 11, 5), 1, ((None, 11, 5, 1, 1), (1, None, 1, 11, 5))),
        ((3, 11, None), 1, None),  # the groups would be unknown
        ((3, 11, 0), 1, None),
        ((3, 5, 7, 11), (1, 3), None),
        ((3, 5, 7, 11), (2, 3), None),
    ],
)
def test_untransposed(shape, axis, views):
    got = geometry(shape, axis, apart="positions").untransposed(shape)
    assert (got and tuple(view.view(shape) for view in got)) == views
    if views and None not in shape:  # the moments are those over the axes
        x = np.random.default_rng(3).normal(size=shape)
        want = x.mean(axis).ravel()
        np.testing.assert_allclose(x.reshape(views[0]).mean((1, 3, 4)).ravel(), want, atol=1e-14)


def test_order_is_none_when_nothing_moves():
    assert geometry((3, 5, 7), -1, apart="positions").order is None
    assert geometry((3, 5, 7), (1, 2), apart="positions").parameter_order is None
    assert geometry((3, 7, 5), 1, apart="samples").order is None


@pytest.mark.parametrize("axis", [(3, 1), (1, -1), (-1, 1), (2, -1, 1), (-1, 0), (0, 2)])
def test_orders_of_several_axes(axis):
    shape = (3, 5, 7, 11)
    view = geometry(shape, axis, apart="positions")
    in_order = transposed(shape, view.order)
    parameters = parameter_shape(shape, axis)
    assert parameters == tuple(shape[a] for a in sorted(axis))  # Keras: sorted as given
    channels = in_order[view.samples + view.before :][: view.channels]
    assert transposed(parameters, view.parameter_order) == channels


@pytest.mark.parametrize(
    "unknown", [u for r in range(4) for u in itertools.combinations(range(3), r)]
)
def test_unknown_sizes(unknown):
    shape = [None if a in unknown else size for a, size in enumerate((3, 5, 7, 6))]
    n, s, g, d, t = geometry(shape, -1, apart="samples", groups=2).view(shape)
    assert (g, d, t) == (2, 3, 1)
    assert n == (None if 0 in unknown else 3)
    assert s == (None if {1, 2} & set(unknown) else 35)


def test_empty_sizes():
    assert geometry((0, 5, 6), -1, apart="samples", groups=2).view((0, 5, 6)) == (0, 5, 2, 3, 1)
    assert geometry((2, 0, 6), -1, apart="nothing", groups=-1).view((2, 0, 6)) == (1, 0, 6, 1, 1)


def test_is_a_value():
    one = geometry((3, 5, 7), -1, apart="positions")
    assert one == geometry((2, 2, 7), 2, apart="positions") == Geometry(2, 0, 1, 0, 1)
    assert hash(one) == hash(geometry((2, 2, 7), 2, apart="positions"))
    with pytest.raises(AttributeError):
        one.groups = 2


ERRORS = [
    ((2, 5, 6), 3, "positions", 1, ValueError, r"Axis 3 is out of bounds for shape \(2, 5, 6\)"),
    ((2, 5, 6), -4, "nothing", -1, ValueError, "Axis -4 is out of bounds"),
    ((2, 5, 6), (1, 1), "positions", 1, ValueError, r"none twice. Received: axis=\(1, 1\)"),
    ((2, 5, 6), (1, -2), "positions", 1, ValueError, "none twice"),
    ((2, 5, 6), (), "positions", 1, ValueError, "at least one"),
    ((2, 5, None), -1, "samples", 2, ValueError, "must be known"),
    ((2, 5, None), (1, 2), "positions", 1, ValueError, "must be known"),
    ((2, 5, 6), 0, "samples", 2, ValueError, "Axis 0 holds the samples"),
    ((6,), 0, "samples", 1, ValueError, "Axis 0 holds the samples"),
    ((2, 5, 6), -1, "samples", 4, ValueError, "divide .* groups=4, channels=6"),
    ((2, 5, 6), -1, "samples", 0, ValueError, "groups=0"),
    ((2, 5, 6), -1, "samples", -2, ValueError, "groups=-2"),
    ((2, 5, 6), "1", "positions", 1, TypeError, "`axis` must be .*Received: axis='1'"),
    ((2, 5, 6), 1.5, "positions", 1, TypeError, "Received: axis=1.5"),
    ((2, 5, 6), None, "positions", 1, TypeError, "Received: axis=None"),
]


@pytest.mark.parametrize("shape, axis, apart, groups, error, message", ERRORS)
def test_errors(shape, axis, apart, groups, error, message):
    with pytest.raises(error, match=message):
        geometry(shape, axis, apart=apart, groups=groups)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_numpy_integers_are_integers(kind):
    got = geometry((2, 5, 6), kind(-1), apart="samples", groups=kind(3))
    assert got.view((2, 5, 6)) == (2, 5, 3, 2, 1)
    assert math.prod(got.view((2, 5, 6))) == 60
