"""What the six functions have to give, in float64 on the device, by the formulas of
custom_ops/core/normalize.h; and how far a result may be from it.

Tensors are seen as `[n, s, g, d, t]`, parameters as `[1, 1, g, d, 1]`.
"""

import math

import torch

from benchmarks.gpu.cases import Geometry

# Of ||got - want|| / ||want||: of y and the statistics, of dx, of sums over many elements.
FORWARD, DX, SUMS = "forward", "dx", "sums"
LIMITS = {FORWARD: 1e-6, DX: 5e-6, SUMS: 1e-5}
# Results of 16 bits are rounded once, to half a unit in the last place.
ROUNDED = {"bfloat16": 4e-3, "float16": 6e-4}


def limit(kind: str, dtype: str) -> float:
    """For a result of this type; arithmetic is float32 for all."""
    return ROUNDED.get(dtype, LIMITS[kind])


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative, by the Euclidean norm; not a number if anything in `got` is not."""
    return float((got.double() - want).norm() / want.norm())


def wide(x: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    return None if x is None else x.double().reshape(shape)


def moments(x, k: Geometry, subtract_mean: bool):
    """Mean and variance, `[n, 1, g, 1, 1]`, of `x[n, s, g, d, t]`."""
    over = (1, 3, 4)
    mean = x.mean(over, keepdim=True) if subtract_mean else x.new_zeros(k.n, 1, k.g, 1, 1)
    return mean, (x - mean).square().mean(over, keepdim=True)


def activate(name: str, z):
    match name:
        case "relu":
            return z.relu()
        case "silu":
            return z * z.sigmoid()
        case "gelu":
            return z * torch.special.erfc(-z / math.sqrt(2)) / 2
    return z


def slope(name: str, z):
    """The activation's derivative."""
    match name:
        case "relu":
            return (z > 0).to(z.dtype)
        case "silu":
            return z.sigmoid() * (1 + z * (1 - z.sigmoid()))
        case "gelu":
            density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
            return torch.special.erfc(-z / math.sqrt(2)) / 2 + z * density
    return torch.ones_like(z)


def normalize(x, gamma, beta, mean, variance, epsilon):
    """z, before the activation."""
    return (x - mean) / (variance + epsilon).sqrt() * gamma + beta


def normalize_grad(dz, x, gamma, mean, variance, epsilon, subtract_mean):
    """dx, dgamma, dbeta."""
    over = (1, 3, 4)
    rstd = 1 / (variance + epsilon).sqrt()
    centred = (x - mean) * rstd
    g = dz * gamma
    dx = g - centred * (g * centred).mean(over, keepdim=True)
    if subtract_mean:
        dx = dx - g.mean(over, keepdim=True)
    parameters = (0, 1, 4)
    return dx * rstd, (dz * centred).sum(parameters), dz.sum(parameters)


def moments_grad(x, mean, dmean, dvariance, k: Geometry):
    return (dmean + dvariance * 2 * (x - mean)) / k.count


def scale_shift_grad(dz, x, center, scale):
    """dx, dscale, dshift; the latter per (n, g, d)."""
    return dz * scale, (dz * (x - center)).sum((1, 4)), dz.sum((1, 4))
