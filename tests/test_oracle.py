"""What finds and differentiates references: against gradients known by hand."""

import numpy as np
import oracle
import pytest
from rows import CATALOG


def cube(x, weights, config, training):
    """`x**3 * a + b`; negative x have no gradient (the kink is at 0)."""
    x, a, b = (oracle.number(v) for v in (x, weights["a"], weights["b"]))
    return np.where(x.real > 0, x**3, 0) * a + b


def sums(x, weights, config, training):
    """Two inputs and two outputs."""
    first, second = x
    return first * weights["a"], first + 2 * second


def test_gradients_are_the_known_ones(monkeypatch):
    monkeypatch.setattr(oracle, "find", lambda name, required=True: cube if required else None)
    x, dy = np.array([[-1.0, 2.0, 3.0]]), np.array([[1.0, -1.0, 0.5]])
    weights = {"a": np.array([1.0, 2.0, 3.0]), "b": np.zeros(3)}
    want, back = oracle._generic("Cube", x, dy, weights, ["a", "b"], {}, True)
    np.testing.assert_array_equal(want.y, [[0, 16, 81]])
    np.testing.assert_allclose(back.dx, [[0, -1 * 12 * 2, 0.5 * 27 * 3]], rtol=1e-15)
    np.testing.assert_allclose(back.gradients["a"], [0, -8, 13.5], rtol=1e-15)
    np.testing.assert_array_equal(back.gradients["b"], dy[0])
    assert back.scale == np.abs(back.dx).max()


def test_several_inputs_and_outputs(monkeypatch):
    monkeypatch.setattr(oracle, "find", lambda name, required=True: sums if required else None)
    x, dy = np.arange(12.0).reshape(2, 2, 3), np.arange(1.0, 13).reshape(2, 2, 3)
    want, back = oracle._generic("Sums", list(x), tuple(dy), {"a": np.array(3.0)}, ["a"], {}, True)
    np.testing.assert_array_equal(want.y[1], x[0] + 2 * x[1])
    np.testing.assert_allclose(back.dx_parts[0], 3 * dy[0] + dy[1], rtol=1e-15)
    np.testing.assert_allclose(back.dx_parts[1], 2 * dy[1], rtol=1e-15)
    np.testing.assert_allclose(back.gradients["a"], (x[0] * dy[0]).sum(), rtol=1e-15)


def test_a_large_input_has_the_derivative_at_some_places(monkeypatch):
    monkeypatch.setattr(oracle, "find", lambda name, required=True: cube if required else None)
    x, dy = np.random.default_rng(1).normal(size=(2, 900, 2))
    weights = {"a": np.ones(2), "b": np.ones(2)}
    _, back = oracle._generic("Cube", x, dy, weights, ["a"], {}, True)
    (got,) = back.at(np.where(x > 0, 3 * x**2, 0) * dy)
    assert got.shape == (oracle.SAMPLE,)
    np.testing.assert_allclose(back.dx_parts[0], got, rtol=1e-14)


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_every_layer_has_a_reference(row):
    assert row.name in oracle.CLASSIC or oracle.find(oracle.snake_case(row.name))
    assert np.prod(row.shape) * row.inputs <= oracle.WHOLE


def test_names():
    names = ("EvoNormalizationB0", "ThresholdedLinearUnit", "DynamicTanh")
    assert [oracle.snake_case(name) for name in names] == [
        "evo_normalization_b0",
        "thresholded_linear_unit",
        "dynamic_tanh",
    ]
