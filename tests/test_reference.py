"""The reference itself: against finite differences, and against results worked out by hand."""

import numpy as np
import pytest
import reference

CASES = {
    "batch": ((3, 2, 5), (5,), reference.batch_norm, reference.batch_norm_gradients, {}),
    "batch_first": (
        (3, 5, 2),
        (5,),
        reference.batch_norm,
        reference.batch_norm_gradients,
        {"axis": 1},
    ),
    "layer": ((3, 2, 5), (5,), reference.layer_norm, reference.layer_norm_gradients, {}),
    "layer_unsorted": (
        (2, 3, 2, 5),
        (5, 3),
        reference.layer_norm,
        reference.layer_norm_gradients,
        {"axis": [1, -1]},
    ),
    "instance": ((2, 5, 3), (3,), reference.instance_norm, reference.instance_norm_gradients, {}),
    "group": ((2, 5, 6), (6,), reference.group_norm, reference.group_norm_gradients, {"groups": 3}),
    "group_first": (
        (2, 6, 5),
        (6,),
        reference.group_norm,
        reference.group_norm_gradients,
        {"groups": 2, "axis": 1},
    ),
}


def difference(function, array, step=1e-5):
    """Central differences of a scalar function of one array."""
    slope = np.zeros_like(array)
    for i in np.ndindex(array.shape):
        moved = array.copy()
        moved[i] += step
        up = function(moved)
        moved[i] -= 2 * step
        slope[i] = (up - function(moved)) / (2 * step)
    return slope


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name, rng):
    shape, parameter_shape, forward, gradients, arguments = CASES[name]
    x, dy = rng.normal(size=(2, *shape))
    gamma, beta = rng.normal(size=(2, *parameter_shape))
    got = gradients(dy, x, gamma, **arguments)
    want_dx = difference(lambda v: (dy * forward(v, gamma, beta, **arguments).y).sum(), x)
    want_dgamma = difference(lambda v: (dy * forward(x, v, beta, **arguments).y).sum(), gamma)
    want_dbeta = difference(lambda v: (dy * forward(x, gamma, v, **arguments).y).sum(), beta)
    for result, want in ((got.dx, want_dx), (got.dgamma, want_dgamma), (got.dbeta, want_dbeta)):
        # Step 1e-5: the third derivative's share is about 1e-10, rounding's 1e-16 / 1e-5.
        np.testing.assert_allclose(result, want, rtol=0, atol=1e-8 * np.abs(want).max())


def test_rms_gradients_are_finite_differences(rng):
    x, dy = rng.normal(size=(2, 3, 2, 5))
    scale = rng.normal(size=(3, 5))
    got = reference.rms_norm_gradients(dy, x, scale, axis=(0, 2))
    want_dx = difference(lambda v: (dy * reference.rms_norm(v, scale, axis=(0, 2)).y).sum(), x)
    want_dscale = difference(lambda v: (dy * reference.rms_norm(x, v, axis=(0, 2)).y).sum(), scale)
    np.testing.assert_allclose(
        got.dx, want_dx, rtol=0, atol=1e-8 * np.abs(want_dx).max()
    )  # as above
    np.testing.assert_allclose(
        got.dgamma, want_dscale, rtol=0, atol=1e-8 * np.abs(want_dscale).max()
    )


def test_masked_gradient_is_finite_difference(rng):
    x, dy = rng.normal(size=(2, 3, 4, 5))
    gamma, beta = rng.normal(size=(2, 5))
    where = np.array([[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 1, 1]], bool)[:, :, None]
    got = reference.batch_norm_gradients(dy, x, gamma, where=where)
    want = difference(lambda v: (dy * reference.batch_norm(v, gamma, beta, where=where).y).sum(), x)
    np.testing.assert_allclose(got.dx, want, rtol=0, atol=1e-8 * np.abs(want).max())  # as above


def test_by_hand():
    x = np.array([[1.0, 3.0], [5.0, 7.0]])
    # Batch: columns (1, 5) and (3, 7), variance 4. Layer: rows (1, 3) and (5, 7), variance 1.
    batch = reference.batch_norm(x, [1, 2], [0, 1], epsilon=0).y
    np.testing.assert_array_equal(batch, [[-1, -1], [1, 3]])
    layer = reference.layer_norm(x, [1, 2], [0, 1], epsilon=0).y
    np.testing.assert_array_equal(layer, [[-1, 3], [-1, 3]])
    rms = reference.rms_norm(np.array([[3.0, 4.0]]), [1, 2], epsilon=0).y  # mean square 25 / 2
    np.testing.assert_allclose(rms, [[3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]], rtol=1e-15)
    # Group: two groups of one sample, (1, 3 | 5, 9) -> variances 1 and 4.
    group = reference.group_norm(
        np.array([[1.0, 3, 5, 9]]), [1, 2, 3, 4], [0, 0, 1, 1], groups=2, epsilon=0
    ).y
    np.testing.assert_array_equal(group, [[-1, 2, -2, 5]])
    # Unsorted axes: gamma[i, j] belongs to x[:, j, i], as sorted([1, -1]) = [-1, 1] says.
    x = np.arange(12.0).reshape(1, 3, 4)
    gamma = np.arange(12.0).reshape(4, 3)
    got = reference.layer_norm(x, gamma, None, axis=[1, -1], epsilon=0).y
    want = (x - x.mean()) / x.std() * gamma.T
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_frozen_by_hand():
    got = reference.frozen_batch_norm(
        np.array([[3.0, 5.0]]), [2, 3], [1, 1], [1, 1], [3, 15], epsilon=1
    )
    np.testing.assert_array_equal(got, [[3, 4]])
