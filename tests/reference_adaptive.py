"""Norms whose gamma and beta come from a second input, in float64, written from the papers.

Imports NumPy and nothing of ours. `x` is the list of an input and its condition; both and the
weights may be complex, so that gradients can be had by the complex step.
"""

import numpy as np
from reference import number

EPSILON = {"layer": 1e-3, "instance": 1e-3, "batch": 1e-3, "group": 1e-3, "rms": 1e-6}


def over(x, axes, epsilon):
    """x with mean 0 and, but for epsilon, variance 1 over these axes."""
    mean = x.mean(axes, keepdims=True)
    mean = mean + (x - mean).mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(np.square(x - mean).mean(axes, keepdims=True) + epsilon)


def normalized(x, weights, config, training):
    """Of x with the channels last."""
    norm, epsilon, groups = config["norm"], config["epsilon"], 32
    if isinstance(norm, dict):  # one of our group norms without gamma and beta
        epsilon, groups = norm["config"]["epsilon"], norm["config"]["groups"]
        norm = "group"
    if norm is None:
        return x
    epsilon = EPSILON[norm] if epsilon is None else epsilon
    space = tuple(range(1, x.ndim - 1))
    if norm == "rms":
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + epsilon)
    if norm == "group":
        split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        return over(split, (*space, x.ndim), epsilon).reshape(x.shape)
    if norm == "batch" and not (training and config["trainable"]):
        mean, variance = number(weights["moving_mean"]), number(weights["moving_variance"])
        return (x - mean) / np.sqrt(variance + epsilon)
    return over(x, {"layer": (-1,), "instance": space, "batch": (0, *space)}[norm], epsilon)


ACTIVATIONS = {
    "relu": lambda z: np.where(z.real > 0, z, 0),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "tanh": np.tanh,
}


def nearest(c, sizes):
    """Every axis of space takes the element at floor(i * old / new)."""
    for axis, new in enumerate(sizes, 1):
        old = c.shape[axis]
        c = np.take(c, [i * old // new for i in range(new)], axis)
    return c


def convolution(c, kernel, bias):
    """Of the same size as c, whose border is 0 beyond; taps are numbered from the left."""
    kernel, taps = number(kernel), kernel.shape[:-2]
    padded = np.pad(c, [(0, 0), *(((k - 1) // 2, k // 2) for k in taps), (0, 0)])
    y = number(bias)
    for tap in np.ndindex(*taps):
        window = tuple(slice(t, t + s) for t, s in zip(tap, c.shape[1:-1], strict=True))
        y = y + padded[(slice(None), *window)] @ kernel[tap]
    return y


def adaptive_normalization(x, weights, config, training):
    x, c = (number(part) for part in x)
    axis, predictor = config["axis"], config["predictor"]
    if predictor in ("conv", "statistics"):
        c = np.moveaxis(c, axis, -1)
    x = np.moveaxis(x, axis, -1)
    channels = x.shape[-1]
    if predictor == "embedding":
        labels = c.real.astype(int).reshape(-1)
        parts = [number(weights[name])[labels] for name in ("gamma", "beta")]
    elif predictor == "statistics":
        space = tuple(range(1, c.ndim - 1))
        epsilon = config["epsilon"]
        epsilon = EPSILON.get(config["norm"], 1e-3) if epsilon is None else epsilon
        mean = c.mean(space, keepdims=True)
        mean = mean + (c - mean).mean(space, keepdims=True)
        std = np.sqrt(np.square(c - mean).mean(space) + epsilon)
        parts = [std, mean.reshape(std.shape)]
    else:
        if predictor == "conv":
            c = nearest(c, x.shape[1:-1])
            if config["hidden"] is not None:
                hidden = convolution(c, weights["hidden_kernel"], weights["hidden_bias"])
                c = ACTIVATIONS["relu"](hidden)
            stacked = convolution(c, weights["kernel"], weights["bias"])
        else:  # "dense", or a Dense layer
            if config.get("predictor_activation"):
                c = ACTIVATIONS[config["predictor_activation"]](c)
            stacked = c @ number(weights["kernel"]) + number(weights["bias"])
        parts = [stacked[..., k : k + channels] for k in range(0, stacked.shape[-1], channels)]
    if parts[0].ndim < x.ndim:  # per sample
        parts = [part.reshape(len(x), *[1] * (x.ndim - 2), channels) for part in parts]
    gamma, beta, *gate = parts
    if config.get("unit_offset"):
        gamma = 1 + gamma
    y = normalized(x, weights, config, training) * gamma + beta
    if config.get("activation"):
        y = ACTIVATIONS[config["activation"]](y)
    y = np.moveaxis(y, -1, axis)
    return (y, np.moveaxis(gate[0], -1, axis)) if gate else y
