"""Makes the layers of a case: one of ours, or those that Keras needs for the same."""

import keras

import keras_norms
from benchmarks.cases import NORMS, Case
from keras_norms.catalog import CATALOG

ROWS = {row.name: row for row in CATALOG}


def inputs(case: Case) -> int:
    """How many tensors the layer takes, in a list if more than one."""
    return ROWS[case.layer].inputs


def layers(whose: str, case: Case) -> list[keras.Layer]:
    """The layers, each to be called with what the one before returns.

    Args:
        whose: "keras_norms" or "keras".

    Raises NotImplementedError where Keras has no such layer.
    """
    return [_ours(case)] if whose == "keras_norms" else _keras(case)


def _ours(case: Case) -> keras.Layer:
    arguments = dict(case.arguments)
    if case.activation:
        arguments["activation"] = case.activation
    if ROWS[case.layer].form == "wrapper":
        inner = keras.layers.Conv2D(case.shape[-1], 3, padding="same", dtype=case.policy)
        return getattr(keras_norms, case.layer)(inner, **arguments)
    return getattr(keras_norms, case.layer)(**arguments)


def _keras(case: Case) -> list[keras.Layer]:
    if case.layer == "ResidualNormalization":
        add = keras.layers.Add(dtype=case.policy)
        return [add, keras.layers.LayerNormalization(**case.arguments)]
    if case.layer not in NORMS:
        raise NotImplementedError("Keras has no such layer.")
    if case.layer == "InstanceNormalization":  # Keras' own way to write it
        norm = keras.layers.GroupNormalization(groups=-1, **case.arguments)
    else:
        norm = getattr(keras.layers, case.layer)(**case.arguments)
    if case.activation is None:
        return [norm]
    return [norm, keras.layers.Activation(case.activation, dtype=case.policy)]
