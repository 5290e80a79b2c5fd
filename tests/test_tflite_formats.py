"""Every layer in the number formats of mobile devices, run in LiteRT beside the float model.

`keras_norms.tflite.convert` writes float32. These files are what TensorFlow's converter makes of
the same portable graph, calibrated with data: they show what a layer's operations allow. An error
is relative to the output: the root mean square of the difference over that of the output.

The converter and LiteRT end the process at some models, so they work in one of their own:

    python tests/test_tflite_formats.py FORM LAYER...
"""

import json
import subprocess
import sys

import pytest
import rows

pytestmark = pytest.mark.slow

# float16: weights rounded to 11 bits. int8: 8 bits for the result of each of the operations that a
# norm consists of, 1.5 to 2.5 % typically. int16x8: 16 bits for results, 8 for weights; operations
# that LiteRT has for float32 only are in float32.
BOUNDS = {"float16": 1e-3, "int8": 5e-2, "int16x8": 1e-2}

# What does not come out right, and why. A conversion that succeeds all the same fails the test.
_DIFFERENCE = "LiteRT has no SQUARED_DIFFERENCE of 16 bits, and the converter writes one"
_SQUARE = "LiteRT has no SQUARE of 16 bits, and the converter writes one"
_ABORT = "LiteRT ends the process: a MEAN of 16 bits over the channels of a group"
_STEPS = "errors of 8 bits add up over the steps: 7 % in the LSTM, 9 % in the GRU"
EXPECTED = {
    ("LayerNormalization", "int16x8"): _DIFFERENCE,
    ("InstanceNormalization", "int16x8"): _DIFFERENCE,
    ("GroupNormalization", "int16x8"): _ABORT,
    ("RMSNormalization", "int16x8"): _SQUARE,
    ("SwitchableNormalization", "int16x8"): _DIFFERENCE,
    ("SparseSwitchableNormalization", "int16x8"): _DIFFERENCE,
    ("EvoNormalizationB0", "int16x8"): _DIFFERENCE,
    ("EvoNormalizationS0", "int16x8"): _ABORT,
    ("FilterResponseNormalization", "int16x8"): _SQUARE,
    ("ThresholdedLinearUnit", "int16x8"): "MAXIMUM of 16 bits takes both inputs for one scale",
    ("GlobalResponseNormalization", "int16x8"): _SQUARE,
    ("LocalResponseNormalization", "int16x8"): _SQUARE,
    ("PixelNormalization", "int16x8"): _SQUARE,
    ("PositionalNormalization", "int16x8"): _DIFFERENCE,
    ("ScaleNormalization", "int16x8"): _SQUARE,
    ("ResidualNormalization", "int16x8"): _DIFFERENCE,
    ("MixedNormalization", "int16x8"): _DIFFERENCE,
    ("MultiScaleNormalization", "int16x8"): _ABORT,
    ("AdaptiveNormalization", "int16x8"): _DIFFERENCE,
    ("LayerNormLSTMCell", "int8"): _STEPS,
    ("LayerNormLSTMCell", "int16x8"): _DIFFERENCE,
    ("LayerNormGRUCell", "float16"): "0.101 %: rounded weights come in at every step",
    ("LayerNormGRUCell", "int8"): _STEPS,
    ("LayerNormGRUCell", "int16x8"): _DIFFERENCE,
    ("LayerNormSimpleRNNCell", "int16x8"): _DIFFERENCE,
}

SAMPLES = 32


def cases():
    for row in rows.CATALOG:
        for form in BOUNDS:
            marks = [pytest.mark.supports(f"TFLite {form}")]
            if reason := EXPECTED.get((row.name, form)):
                marks.append(pytest.mark.xfail(reason=reason, strict=True))
            yield pytest.param(row, form, marks=marks, id=f"{form}-{row.name}")


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """By format and layer: its error, or what went wrong."""
    return {
        form: rows.once(tmp_path_factory, form, lambda f=form: of_all_layers(f)) for form in BOUNDS
    }


def of_all_layers(form) -> dict:
    found = {}
    while names := [row.name for row in rows.CATALOG if row.name not in found]:
        command = [sys.executable, __file__, form, *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("FOUND")]
        found.update(entry for line in lines for entry in json.loads(line).items())
        if done.returncode:
            stopped = names[len(lines)]
            found[stopped] = f"the process ended with {done.returncode}: {done.stderr[-500:]}"
    return found


@pytest.mark.parametrize("row, form", list(cases()))
def test_every_layer_in_every_format(row, form, errors):
    error = errors[form][row.name]
    assert isinstance(error, float), error
    print(f"relative error {error:.2%}")
    assert error <= BOUNDS[form]


def test_what_is_expected_to_fail_is_in_the_table():
    assert set(EXPECTED) <= {(row.name, form) for row in rows.CATALOG for form in BOUNDS}


# In the other process.


def converted(layer, row, form, data):
    """The file's bytes."""
    import keras
    import tensorflow as tf
    from tensorflow.lite.python.lite import OpsSet

    import keras_norms as kn

    inputs = [keras.Input(batch_shape=(1, *row.shape[1:]), name=f"x{k}") for k in range(row.inputs)]
    outputs = rows.first(layer(inputs if row.inputs > 1 else inputs[0]))
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(inputs, outputs))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if form == "float16":
        converter.target_spec.supported_types = [tf.float16]
    else:
        converter.representative_dataset = lambda: (
            [part[k : k + 1] for part in data] for k in range(SAMPLES)
        )
    if form == "int8":
        converter.target_spec.supported_ops = [OpsSet.TFLITE_BUILTINS_INT8]
    if form == "int16x8":
        converter.target_spec.supported_ops = [
            OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
            OpsSet.TFLITE_BUILTINS,
        ]
    with kn.portable():
        return converter.convert()


def run(content, data):
    """Outputs of the file, one sample after the other, in real numbers."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    inputs = sorted(interpreter.get_input_details(), key=lambda detail: detail["name"])
    (output,) = interpreter.get_output_details()
    results = []
    for k in range(len(data[0])):
        for detail, part in zip(inputs, data, strict=True):
            interpreter.set_tensor(detail["index"], part[k : k + 1])
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"]))
    return np.concatenate(results)


def relative_error(row, form) -> float:
    import numpy as np

    import keras_norms as kn

    layer = rows.trained(row)
    if row.form == "cell":  # calibrating a loop ends the converter's process
        layer.unroll = True
    draw = np.random.default_rng(8)
    # Samples of different size, as they are: the ranges are those of all of them.
    size = draw.uniform(0.5, 2, (SAMPLES, *[1] * (len(row.shape) - 1)))
    shape = (SAMPLES, *row.shape[1:])
    data = [(draw.normal(0.5, 1, shape) * size).astype("float32") for _ in range(row.inputs)]
    got = run(converted(layer, row, form, data), data)
    with kn.portable():
        want = rows.first(layer(data if row.inputs > 1 else data[0])).numpy().astype("float64")
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


if __name__ == "__main__":
    import os

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    form, *names = sys.argv[1:]
    for row in rows.CATALOG:
        if row.name in names:
            try:
                result = relative_error(row, form)
            except Exception as error:
                result = f"{type(error).__name__}: {error}"[:2000]
            print("FOUND" + json.dumps({row.name: result}), flush=True)
