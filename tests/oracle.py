"""Finds a layer's reference and what it says of the forward result and the gradients.

The five classic norms have analytic ones in `reference.py`. Every other layer has a function named
after it, in snake case, in one of the modules `reference_*.py`:

    name_of_layer(x, weights, config, training) -> y

of float64 arrays: x an array, or a list if the layer takes several; weights by name; the layer's
configuration. y is an array, or a tuple if the layer gives several. The gradients are got by the
complex step, exact to rounding, so it must take complex numbers: `reference.number` converts,
comparisons are made on `.real`. What has no derivative of its own (a number that the layer takes as
constant) is taken `.real`. Where that does not say it, `name_of_layer_gradients(dy, x, weights,
config, training) -> (dx, {weight: gradient})` stands beside it and is asked instead.
"""

import functools
import hashlib
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reference
from reference import number

CLASSIC = {
    "BatchNormalization": (reference.batch_norm, reference.batch_norm_gradients),
    "LayerNormalization": (reference.layer_norm, reference.layer_norm_gradients),
    "InstanceNormalization": (reference.instance_norm, reference.instance_norm_gradients),
    "GroupNormalization": (reference.group_norm, reference.group_norm_gradients),
    "RMSNormalization": (reference.rms_norm, reference.rms_norm_gradients),
}
# Larger inputs have the derivative at this many elements, drawn at random.
WHOLE, SAMPLE = 1500, 24
STEP = 1e-30


class Forward(NamedTuple):
    y: Any  # an array, or a tuple of them
    mean: Any = None
    variance: Any = None


@dataclass
class Backward:
    """Gradients; of a large input at `places` only."""

    dx_parts: list[np.ndarray]
    gradients: dict[str, np.ndarray]
    scale: float  # the size of the terms whose sum dx is
    # The same of the weights' gradients: the root of the sum of their squares, as roundings add up.
    terms: dict[str, float] = field(default_factory=dict)
    places: list[Any] | None = None

    def at(self, dx) -> list[np.ndarray]:
        """A result's parts, at the places where this one has elements."""
        parts = list(dx) if isinstance(dx, list | tuple) else [dx]
        if self.places is None:
            return parts
        return [part.reshape(-1)[at] for part, at in zip(parts, self.places, strict=True)]

    @property
    def dx(self) -> np.ndarray:
        assert self.places is None and len(self.dx_parts) == 1
        return self.dx_parts[0]


class Lazy(Backward):
    """Each half is computed when it is first asked for: many tests need y, or dx, alone."""

    def __init__(self, of_inputs: Callable, of_weights: Callable):
        self.of_inputs, self.of_weights = of_inputs, of_weights

    @functools.cached_property
    def _inputs(self):
        return self.of_inputs()

    @functools.cached_property
    def _weights(self):
        return self.of_weights()

    dx_parts = property(lambda self: self._inputs[0])
    scale = property(lambda self: self._inputs[1])
    places = property(lambda self: self._inputs[2])
    gradients = property(lambda self: self._weights[0])
    terms = property(lambda self: self._weights[1])


def named(layer, trainable=False) -> dict[str, Any]:
    """A layer's weights by name; where several have it, by the last two parts of their path."""
    weights = layer.trainable_weights if trainable else layer.weights
    names = [weight.name for weight in layer.weights]
    return {
        weight.name
        if names.count(weight.name) == 1
        else "/".join(weight.path.split("/")[-2:]): weight
        for weight in weights
    }


def is_classic(layer) -> bool:
    return type(layer).__name__ in CLASSIC


def expected(layer, x, dy, weights, training) -> tuple[Forward, Backward]:
    """Forward and backward results of a built layer with these weights."""
    if is_classic(layer):
        return _classic(layer, x, dy, weights)
    subject = getattr(layer, "cell", layer)
    name, config = type(subject).__name__, subject.get_config()
    trainable = list(named(layer, trainable=True))
    key = _key(name, config, training, x, dy, weights)
    if key not in _known:
        _known[key] = _generic(name, x, dy, weights, trainable, config, training)
    return _known[key]


def _classic(layer, x, dy, weights):
    forward, gradients = CLASSIC[type(layer).__name__]
    arguments = {"axis": layer.axis, "epsilon": layer.epsilon}
    if "groups" in layer.get_config():
        arguments["groups"] = layer.groups
    scale = "scale" if "scale" in weights else "gamma"
    gamma = weights.get(scale)
    shift = () if scale == "scale" else (weights.get("beta"),)
    want = forward(x, gamma, *shift, **arguments)
    back = gradients(dy, x, gamma, **arguments)
    found = {scale: back.dgamma, "beta": back.dbeta}
    return Forward(*want), Backward([back.dx], found, back.scale)


def find(name: str, required: bool = True) -> Callable | None:
    """A function of the modules `reference_*.py`."""
    for path in sorted(Path(__file__).parent.glob("reference_*.py")):
        if re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE):
            return getattr(importlib.import_module(path.stem), name)
    if required:
        raise LookupError(f"No tests/reference_*.py has a function {name}.")
    return None


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


_known: dict[bytes, tuple[Forward, Backward]] = {}


def _key(*parts) -> bytes:
    """Equal for equal arguments; what a layer is called does not matter."""
    digest = hashlib.sha256()

    def add(part):
        if isinstance(part, dict):
            for name in sorted(set(part) - {"name", "dtype", "trainable"}):
                digest.update(name.encode())
                add(part[name])
        elif isinstance(part, list | tuple) and any(hasattr(one, "dtype") for one in part):
            for one in part:
                add(one)
        elif hasattr(part, "dtype"):
            array = np.asarray(part)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(json.dumps(part, default=str).encode())

    for part in parts:
        add(part)
    return digest.digest()


def _listed(value) -> list[np.ndarray]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _generic(name, x, dy, weights, trainable, config, training):
    function = find(snake_case(name))
    several = isinstance(x, list | tuple)
    xs, dys = [number(part) for part in _listed(x)], [number(part) for part in _listed(dy)]
    weights = {key: number(weight) for key, weight in weights.items()}

    def outputs(xs, weights):
        return function(list(xs) if several else xs[0], weights, config, training)

    y = outputs(xs, weights)
    analytic = find(f"{snake_case(name)}_gradients", required=False)
    if analytic:
        given = (list(dys) if isinstance(dy, list | tuple) else dys[0]), list(xs)
        dx, gradients = analytic(
            given[0], given[1] if several else xs[0], weights, config, training
        )
        dx = _listed(dx)
        return Forward(y), Backward(dx, gradients, max(np.abs(d).max(initial=0) for d in dx))

    def slopes(array, put, places):
        """Derivatives of sum(y * dy) by elements of an array; the size of their terms."""
        found, largest, norm = np.zeros(len(places)), 0.0, 0.0
        for k, place in enumerate(places):
            moved = array.astype(np.complex128)
            moved.reshape(-1)[place] += 1j * STEP
            terms = [
                d * (np.imag(output) / STEP)
                for d, output in zip(dys, _listed(put(moved)), strict=True)
            ]
            found[k] = sum(part.sum() for part in terms)
            largest = max(largest, *(np.abs(part).max(initial=0) for part in terms))
            norm = max(norm, np.sqrt(sum(np.square(part).sum() for part in terms)))
        return found, largest, norm

    def of_inputs():
        whole = sum(part.size for part in xs) <= WHOLE
        draw = np.random.default_rng(23)
        dx, scale, places = [], 0.0, []
        for k, part in enumerate(xs):
            places.append(np.arange(part.size) if whole else draw.integers(0, part.size, SAMPLE))
            found, largest, _ = slopes(
                part, lambda v, k=k: outputs([*xs[:k], v, *xs[k + 1 :]], weights), places[-1]
            )
            dx.append(found.reshape(part.shape) if whole else found)
            scale = max(scale, largest)
        return dx, scale, None if whole else places

    def of_weights():
        gradients, terms = {}, {}
        for key in trainable:
            array = weights[key]
            found, _, terms[key] = slopes(
                array, lambda v, key=key: outputs(xs, {**weights, key: v}), range(array.size)
            )
            gradients[key] = found.reshape(array.shape)
        return gradients, terms

    return Forward(y), Lazy(of_inputs, of_weights)
