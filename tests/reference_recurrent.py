"""Recurrent cells with normalization, in float64, from the papers.

Imports NumPy and nothing of ours. `name_of_cell(x, weights, config, training)` runs a whole
sequence x, (batch, time, features), from zero states and returns all outputs. `weights` is keyed by
name, or by the last two parts of the path ("kernel_norm/gamma") where a name occurs more than once.
Everything may be complex: a derivative is the imaginary part of the result at x + 1e-30j.

`run` is the same with initial states, a mask, dropout masks and other norms.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reference import number

FUNCTIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.where(z.real > 0, z, 0),
    "linear": lambda z: z,
}


def weight_of(weights, norm, name):
    return weights.get(f"{norm}/{name}", weights.get(name))


def layer_norm(z, weights, norm, config, step):
    """Ba, Kiros and Hinton 2016, equation 4."""
    epsilon = config.get("norm_epsilon", config.get("layernorm_epsilon"))
    z = z - z.mean(-1, keepdims=True)
    y = z / np.sqrt(np.square(z).mean(-1, keepdims=True) + epsilon)
    beta = weight_of(weights, norm, "beta")
    y = y * weight_of(weights, norm, "gamma")
    return y if beta is None else y + beta


@dataclass
class BatchNorm:
    """Cooijmans et al. 2016, equation 1; keeps the statistics of each step by norm."""

    training: bool
    epsilon: float = 1e-3
    found: dict[str, list[Any]] = field(default_factory=dict)

    def __call__(self, z, weights, norm, config, step):
        if self.training:
            mean = z.mean(0)
            variance = np.square(z - mean).mean(0)
            self.found.setdefault(norm, []).append((mean.real, variance.real))
        else:
            names = "moving_mean", "moving_variance"
            tables = [weight_of(weights, norm, name) for name in names]
            mean, variance = (table[min(step, len(table) - 1)] for table in tables)
        y = (z - mean) / np.sqrt(variance + self.epsilon)
        return y * weight_of(weights, norm, "gamma") + weight_of(weights, norm, "beta")


def lstm_step(x, states, weights, norm, act, gate, recurrent_x):
    h, c = states
    z = norm(x @ weights["kernel"], "kernel_norm")
    z = z + norm(recurrent_x(h) @ weights["recurrent_kernel"], "recurrent_norm")
    i, f, g, o = np.split(z + weights.get("bias", 0), 4, axis=-1)
    c = norm(gate(f) * c + gate(i) * act(g), "state_norm")
    h = gate(o) * act(c)
    return h, [h, c]


def gru_step(x, states, weights, norm, act, gate, recurrent_x):
    (h,) = states
    u = h.shape[-1]
    kernels = weights["kernel"], weights["recurrent_kernel"]
    (of_x, candidate_x), (of_h, candidate_h) = (
        (v @ kernel[:, : 2 * u], v @ kernel[:, 2 * u :])
        for v, kernel in zip((x, recurrent_x(h)), kernels, strict=True)
    )
    b, recurrent_b = weights.get("bias", np.zeros((2, 3 * u)))
    zr = norm(of_x, "kernel_norm") + norm(of_h, "recurrent_norm")
    z, r = np.split(gate(zr + b[: 2 * u] + recurrent_b[: 2 * u]), 2, axis=-1)
    g = norm(candidate_h, "candidate_recurrent_norm") + recurrent_b[2 * u :]
    g = act(norm(candidate_x, "candidate_kernel_norm") + b[2 * u :] + r * g)
    h = z * h + (1 - z) * g
    return h, [h]


def simple_rnn_step(x, states, weights, norm, act, gate, recurrent_x):
    (h,) = states
    z = x @ weights["kernel"] + recurrent_x(h) @ weights["recurrent_kernel"]
    h = act(norm(z, "layernorm") + weights.get("bias", 0))
    return h, [h]


# The step, and how many states it has.
STEPS = {"lstm": (lstm_step, 2), "gru": (gru_step, 1), "simple_rnn": (simple_rnn_step, 1)}


def run(kind, x, weights, config, *, states=None, mask=None, norm=layer_norm, drop=(1, 1)):
    """All outputs and the last states.

    Args:
        mask: (batch, time), the steps that count: others keep states and output.
        norm: (z, weights, name of the norm, config, step) -> y.
        drop: what the input and the recurrent state are multiplied with.
    """
    step, count = STEPS[kind]
    x = number(x)
    weights = {name: number(weight) for name, weight in weights.items()}
    if states is None:
        states = [np.zeros((len(x), config["units"]))] * count
    act = FUNCTIONS[config["activation"]]
    gate = FUNCTIONS[config.get("recurrent_activation", "sigmoid")]
    y, outputs = np.zeros((len(x), config["units"])), []
    for t in range(x.shape[1]):
        new_y, new = step(
            x[:, t] * drop[0],
            states,
            weights,
            lambda z, name, t=t: norm(z, weights, name, config, t),
            act,
            gate,
            lambda h: h * drop[1],
        )
        kept = np.ones((len(x), 1), bool) if mask is None else mask[:, t, None]
        y = np.where(kept, new_y, y)
        states = [np.where(kept, one, old) for one, old in zip(new, states, strict=True)]
        outputs.append(y)
    return np.stack(outputs, axis=1), states


def norm_of(config, training):
    """The norm that a configuration names: none, or batch normalization."""
    if "norm" not in config:
        return layer_norm
    assert config["norm"]["class_name"] == "BatchNormalization"
    return BatchNorm(training, config["norm"]["config"]["epsilon"])


def layer_norm_lstm_cell(x, weights, config, training):
    return run("lstm", x, weights, config, norm=norm_of(config, training))[0]


def layer_norm_gru_cell(x, weights, config, training):
    return run("gru", x, weights, config, norm=norm_of(config, training))[0]


def layer_norm_simple_rnn_cell(x, weights, config, training):
    return run("simple_rnn", x, weights, config, norm=norm_of(config, training))[0]
