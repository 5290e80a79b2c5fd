"""The five norms and their gradients in float64, written from the papers' axis sets.

Imports NumPy and nothing of ours. Every function takes arrays of any type, converts them to float64
(exact for float16, bfloat16 and float32) and works on the axes the paper names: no view, no reshape
beside the one that splits channels into groups. The formulas, with the statistics' axes A and
r = 1 / sqrt(variance + epsilon):

    y = (x - mean) * r * gamma + beta
    dx = r * (g - mean_A(g) - h * mean_A(g * h))     g = dy * gamma, h = (x - mean) * r
    dgamma = sum(dy * h), dbeta = sum(dy)            over every axis that gamma does not have

For RMS the mean is 0 and the term mean_A(g) goes. `test_reference.py` checks them against finite
differences.
"""

from typing import NamedTuple

import numpy as np


class Forward(NamedTuple):
    y: np.ndarray
    mean: np.ndarray  # keepdims
    variance: np.ndarray  # keepdims, biased


class Backward(NamedTuple):
    dx: np.ndarray
    dgamma: np.ndarray
    dbeta: np.ndarray
    scale: float  # the largest |g| * r: the size of the terms whose difference dx is


def float64(x):
    return np.asarray(x).astype(np.float64)


def number(x):
    """x in float64; complex128 if it is complex, as it is where a gradient is taken."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def moments(x, axes, subtract_mean=True, where=None):
    """Mean and biased variance over `axes` with kept dimensions; 0 and 0 where there is nothing."""
    x = float64(x)
    where = np.ones_like(x, bool) if where is None else np.broadcast_to(where, x.shape)
    count = np.maximum(where.sum(axes, keepdims=True), 1)
    mean = np.where(where, x, 0).sum(axes, keepdims=True) / count
    if not subtract_mean:
        mean = np.zeros_like(mean)
    centred = np.where(where, x - mean, 0)
    if subtract_mean:  # what rounding left in the mean: matters for 4e6 elements at a mean of 1e6
        rest = centred.sum(axes, keepdims=True) / count
        mean, centred = mean + rest, np.where(where, centred - rest, 0)
    return mean, np.square(centred).sum(axes, keepdims=True) / count


def spread(parameter, axes, rank):
    """`parameter`, whose axes are `axes` of x (in any order), with size 1 elsewhere."""
    parameter = float64(parameter)
    order = np.argsort(axes)
    parameter = parameter.transpose(order)
    shape = [1] * rank
    for a, size in zip(np.sort(axes), parameter.shape, strict=True):
        shape[a] = size
    return parameter.reshape(shape)


def gather(total, axes):
    """Inverse of `spread`: sums over the other axes of x, the rest in the parameter's order."""
    other = tuple(a for a in range(total.ndim) if a not in axes)
    return total.sum(other).transpose(np.argsort(np.argsort(axes)))


def forward(x, gamma, beta, axes, parameter_axes, epsilon, subtract_mean=True, where=None):
    x = float64(x)
    mean, variance = moments(x, axes, subtract_mean, where)
    y = (x - mean) / np.sqrt(variance + epsilon)
    if gamma is not None:
        y = y * spread(gamma, parameter_axes, x.ndim)
    if beta is not None:
        y = y + spread(beta, parameter_axes, x.ndim)
    return Forward(y, mean, variance)


def backward(dy, x, gamma, axes, parameter_axes, epsilon, subtract_mean=True, where=None):
    x, dy = float64(x), float64(dy)
    mean, variance = moments(x, axes, subtract_mean, where)
    r = 1 / np.sqrt(variance + epsilon)
    h = (x - mean) * r
    g = dy if gamma is None else dy * spread(gamma, parameter_axes, x.ndim)
    # Only elements inside the mask feed the statistics, but every element's y depends on them.
    inside = np.ones_like(x, bool) if where is None else np.broadcast_to(where, x.shape)
    count = np.maximum(inside.sum(axes, keepdims=True), 1)
    through = h * (g * h).sum(axes, keepdims=True) / count
    if subtract_mean:
        through = through + g.sum(axes, keepdims=True) / count
    dx = r * (g - np.where(inside, through, 0))
    scale = float(np.abs(r * g).max(initial=0))
    return Backward(dx, gather(dy * h, parameter_axes), gather(dy, parameter_axes), scale)


def positive(axis, rank):
    """Axes counted from the front, in Keras' order: `sorted` as given, then made positive."""
    axis = [axis] if isinstance(axis, int) else sorted(axis)
    return tuple(a % rank for a in axis)


# Batch normalization (Ioffe and Szegedy 2015): every axis but the channels.


def _batch_axes(x, axis):
    (channels,) = positive(axis, np.ndim(x))
    return tuple(a for a in range(np.ndim(x)) if a != channels), (channels,)


def batch_norm(x, gamma, beta, *, axis=-1, epsilon=1e-3, where=None):
    return forward(x, gamma, beta, *_batch_axes(x, axis), epsilon, where=where)


def batch_norm_gradients(dy, x, gamma, *, axis=-1, epsilon=1e-3, where=None):
    return backward(dy, x, gamma, *_batch_axes(x, axis), epsilon, where=where)


def frozen_batch_norm(x, gamma, beta, mean, variance, *, axis=-1, epsilon=1e-3):
    rank = np.ndim(x)
    _, channels = _batch_axes(x, axis)
    y = (float64(x) - spread(mean, channels, rank)) / np.sqrt(
        spread(variance, channels, rank) + epsilon
    )
    if gamma is not None:
        y = y * spread(gamma, channels, rank)
    return y if beta is None else y + spread(beta, channels, rank)


def moving_average(old, new, momentum):
    return float64(old) * momentum + float64(new) * (1 - momentum)


# Layer normalization (Ba et al. 2016): the given axes.
# RMS (Zhang and Sennrich 2019): the same, mean 0.


def layer_norm(x, gamma, beta, *, axis=-1, epsilon=1e-3):
    axes = positive(axis, np.ndim(x))
    return forward(x, gamma, beta, axes, axes, epsilon)


def layer_norm_gradients(dy, x, gamma, *, axis=-1, epsilon=1e-3):
    axes = positive(axis, np.ndim(x))
    return backward(dy, x, gamma, axes, axes, epsilon)


def rms_norm(x, scale, *, axis=-1, epsilon=1e-6):
    axes = positive(axis, np.ndim(x))
    return forward(x, scale, None, axes, axes, epsilon, subtract_mean=False)


def rms_norm_gradients(dy, x, scale, *, axis=-1, epsilon=1e-6):
    axes = positive(axis, np.ndim(x))
    return backward(dy, x, scale, axes, axes, epsilon, subtract_mean=False)


# Instance normalization (Ulyanov et al. 2016): space, per sample and channel.


def _instance_axes(x, axis):
    (channels,) = positive(axis, np.ndim(x))
    return tuple(a for a in range(1, np.ndim(x)) if a != channels), (channels,)


def instance_norm(x, gamma, beta, *, axis=-1, epsilon=1e-3):
    return forward(x, gamma, beta, *_instance_axes(x, axis), epsilon)


def instance_norm_gradients(dy, x, gamma, *, axis=-1, epsilon=1e-3):
    return backward(dy, x, gamma, *_instance_axes(x, axis), epsilon)


# Group normalization (Wu and He 2018): space and the channels of a group, per sample. One reshape
# splits the channel axis c into (groups, c / groups); the statistics' axes are then all but 0 and
# the groups' axis.


def _split(x, groups, axis):
    (channels,) = positive(axis, np.ndim(x))
    shape = list(np.shape(x))
    if groups == -1:
        groups = shape[channels]
    shape[channels : channels + 1] = [groups, shape[channels] // groups]
    axes = tuple(a for a in range(1, len(shape)) if a != channels)
    return float64(x).reshape(shape), axes, (channels, channels + 1), (groups, shape[channels + 1])


def group_norm(x, gamma, beta, *, groups=32, axis=-1, epsilon=1e-3):
    split, axes, parameter_axes, parameter_shape = _split(x, groups, axis)
    gamma = None if gamma is None else np.reshape(gamma, parameter_shape)
    beta = None if beta is None else np.reshape(beta, parameter_shape)
    y, mean, variance = forward(split, gamma, beta, axes, parameter_axes, epsilon)
    return Forward(y.reshape(np.shape(x)), mean, variance)


def group_norm_gradients(dy, x, gamma, *, groups=32, axis=-1, epsilon=1e-3):
    split, axes, parameter_axes, parameter_shape = _split(x, groups, axis)
    gamma = None if gamma is None else np.reshape(gamma, parameter_shape)
    dy = float64(dy).reshape(split.shape)
    dx, dgamma, dbeta, scale = backward(dy, split, gamma, axes, parameter_axes, epsilon)
    return Backward(dx.reshape(np.shape(x)), dgamma.reshape(-1), dbeta.reshape(-1), scale)
