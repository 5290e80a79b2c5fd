"""Results of tensorflow-addons, in its own environment, for `tests/test_peers.py`.

    .venv-addons/bin/python tests/peers/addons.py cases.json in.npz out.npz

A case is the name of a class and its arguments. For case i, `in.npz` holds `x_i`, `dy_i` and the
weights, `w_i_gamma`, ...; `out.npz` gets `y_i`, `dx_i`, the weights' gradients `g_i_gamma`, ..., or
`error_i`. A cell runs in an RNN layer, in x's type, and takes the weights in their order. A wrapper
is called once before it gets weights; one that gets none has this call's `y_i`, and its g.
"""

import json
import sys
import warnings

import numpy as np
import tensorflow as tf

warnings.simplefilter("ignore")
import tensorflow_addons as tfa  # noqa: E402  (warns that it is no longer maintained)


def results(case, data, i):
    x, dy = data[f"x_{i}"], data[f"dy_{i}"]
    tf.keras.backend.set_floatx(x.dtype.name)  # its cells hand no dtype to the norms inside
    if case["name"].endswith("Cell"):
        cell = getattr(tfa.rnn, case["name"])(**case["arguments"])
        layer = tf.keras.layers.RNN(cell, return_sequences=True)
    else:
        arguments = dict(case["arguments"])
        if "layer" in arguments:  # a wrapper's: the class and its arguments
            name, own = arguments["layer"]
            arguments["layer"] = getattr(tf.keras.layers, name)(**own)
        layer = getattr(tfa.layers, case["name"])(**arguments)
    layer.build(tf.TensorShape([None, *x.shape[1:]]))
    names = [w.name.split("/")[-1].split(":")[0] for w in layer.trainable_weights]
    if case["name"].endswith("Cell"):
        names = [key.removeprefix(f"w_{i}_") for key in data.files if key.startswith(f"w_{i}_")]
    if "layer" in case["arguments"]:
        first = layer(tf.constant(x))  # sets g
        if not any(key.startswith(f"w_{i}_") for key in data.files):
            return {f"y_{i}": first.numpy(), f"g_{i}_g": layer.g.numpy()}
    for name, weight in zip(names, layer.trainable_weights, strict=True):  # some have axes more
        weight.assign(data[f"w_{i}_{name}"].reshape(weight.shape))
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    dx, *gradients = tape.gradient(y, [x, *layer.trainable_weights], tf.constant(dy))
    named = {f"y_{i}": y, f"dx_{i}": dx}
    named.update({f"g_{i}_{name}": g for name, g in zip(names, gradients, strict=True)})
    return {name: np.asarray(value) for name, value in named.items()}


def main():
    cases, given, path = sys.argv[1:]
    data = np.load(given)
    out = {"versions": np.array([tf.__version__, tfa.__version__])}
    with open(cases) as file:
        for i, case in enumerate(json.load(file)):
            try:
                out.update(results(case, data, i))
            except Exception as error:
                out[f"error_{i}"] = np.array(f"{type(error).__name__}: {error}")
    np.savez(path, **out)


if __name__ == "__main__":
    main()
