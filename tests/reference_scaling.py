"""Layers that scale without centring, or hardly, in float64, written from the papers.

A function per layer, named after it: `(x, weights, config, training)` gives y.
`x` and the weights may be complex, so that gradients can be had by the complex step: no function
here takes a real part, a modulus or a conjugate of data, and only real parts are compared.
"""

import numpy as np
from reference import number


def along(parameter, x, axis):
    """A parameter per channel, with size 1 along the other axes of x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return number(parameter).reshape(shape)


def space(x, axis):
    """The axes that are neither samples nor channels."""
    return tuple(a for a in range(1, x.ndim) if a != axis % x.ndim)


def affine(y, weights, axis):
    if "gamma" in weights:
        y = y * along(weights["gamma"], y, axis)
    if "beta" in weights:
        y = y + along(weights["beta"], y, axis)
    return y


def absolute(x):
    return np.where(x.real < 0, -x, x)


def filter_response_normalization(x, weights, config, training):
    x, axis, epsilon = number(x), config["axis"], config["epsilon"]
    if config["learned_epsilon"]:
        epsilon = epsilon + absolute(number(weights["learned_epsilon"]))
    nu2 = np.square(x).mean(space(x, axis), keepdims=True)
    return affine(x / np.sqrt(nu2 + epsilon), weights, axis)


def thresholded_linear_unit(x, weights, config, training):
    x = number(x)
    tau, alpha = (number(weights.get(name, 0.0)) for name in ("tau", "alpha"))
    if config["tau_shared_axes"] is None:
        tau = along(tau, x, config["axis"])
        alpha = along(alpha, x, config["axis"])
    line = alpha * x + tau
    return np.where(x.real >= line.real, x, line)


def global_response_normalization(x, weights, config, training):
    x, axis = number(x), config["axis"]
    g = np.sqrt(np.square(x).sum(space(x, axis), keepdims=True))
    n = g / (g.mean(axis, keepdims=True) + config["epsilon"])
    return x + affine(x * n, weights, axis)


def local_response_normalization(x, weights, config, training):
    x = np.moveaxis(number(x), config["axis"], -1)
    radius, alpha = config["depth_radius"], config["alpha"]
    if config["convention"] == "torch":
        alpha = alpha / (2 * radius + 1)
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        window = np.square(x[..., max(c - radius, 0) : c + radius + 1]).sum(-1)
        y[..., c] = x[..., c] / (config["bias"] + alpha * window) ** config["beta"]
    return np.moveaxis(y, -1, config["axis"])


def axes_of(config):
    axis = config["axis"]
    return tuple(axis) if isinstance(axis, list) else axis


def pixel_normalization(x, weights, config, training):
    x = number(x)
    square = np.square(x).mean(axes_of(config), keepdims=True)
    return x / np.sqrt(square + config["epsilon"])


def positional_normalization(x, weights, config, training):
    x, axis = number(x), config["axis"]
    mean = x.mean(axis, keepdims=True)
    std = np.sqrt(np.square(x - mean).mean(axis, keepdims=True) + config["epsilon"])
    y = affine((x - mean) / std, weights, axis)
    return (y, mean, std) if config["return_moments"] else y


def scale_normalization(x, weights, config, training):
    x = number(x)
    square = np.square(x).sum(config["axis"], keepdims=True)
    return number(weights["scale"]) * x / np.sqrt(square + config["epsilon"])


def unit_normalization(x, weights, config, training):
    x = number(x)
    length = np.sqrt(np.square(x).sum(axes_of(config), keepdims=True))
    return x / np.where(length == 0, 1, length)


def dynamic_tanh(x, weights, config, training):
    return affine(np.tanh(number(weights["alpha"]) * number(x)), weights, config["axis"])


def layer_scale(x, weights, config, training):
    x = number(x)
    return x * along(weights["gamma"], x, config["axis"])


def residual_normalization(x, weights, config, training):
    """Without dropout, of one axis."""
    x, update = (number(part) for part in x)
    s, axis, epsilon = config["alpha"] * x + update, config["axis"], config["epsilon"]
    if config["norm"] == "layer":
        mean = s.mean(axis, keepdims=True)
        variance = np.square(s - mean).mean(axis, keepdims=True)
        y = (s - mean) / np.sqrt(variance + (1e-3 if epsilon is None else epsilon))
        y = affine(y, weights, axis)
    else:
        square = np.square(s).mean(axis, keepdims=True)
        y = s / np.sqrt(square + (1e-6 if epsilon is None else epsilon))
        if "scale" in weights:
            y = y * (along(weights["scale"], s, axis) + config.get("offset", 0.0))
    return (y, s) if config["order"] == "pre" else y
