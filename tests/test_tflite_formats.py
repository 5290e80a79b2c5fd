"""Every layer in the number formats of mobile devices, run in LiteRT beside the float model.

The SQNR is the power of Keras' output over that of the difference, in dB, on the samples of the
calibration: 6 dB are a bit.
"""

import keras
import numpy as np
import pytest
import rows

import keras_norms as kn
from keras_norms.tflite import measure

pytestmark = pytest.mark.slow

# float16: weights rounded to 11 bits. int8: 8 bits for the result of each operation, and norms that
# would lose more than 3 dB by it in float32. int16x8: 16 bits for the results of all operations,
# norms too, and 8 for weights.
BOUNDS = {"float16": 59.0, "dynamic": 30.0, "int8": 26.0, "int16x8": 38.0}
NORMS = {"int16x8": "quantized"}
SAMPLES = 32

# What does not come out right, and why. What succeeds all the same fails the test.
_STEPS = "errors of rounding add up over the steps"
EXPECTED: dict[tuple[str, str], str] = {
    ("LayerNormLSTMCell", "int16x8"): f"{_STEPS}: 37.7 dB",
    ("LayerNormGRUCell", "int8"): f"{_STEPS}: 22.9 dB",
    ("LayerNormGRUCell", "int16x8"): f"{_STEPS}: 37.3 dB",
}


def cases():
    for row in rows.CATALOG:
        for form in BOUNDS:
            marks = [pytest.mark.supports(f"TFLite {form}")]
            if reason := EXPECTED.get((row.name, form)):
                marks.append(pytest.mark.xfail(reason=reason, strict=True))
            yield pytest.param(row, form, marks=marks, id=f"{form}-{row.name}")


@pytest.mark.parametrize("row, form", list(cases()))
def test_every_layer_in_every_format(row, form, tmp_path):
    layer = rows.trained(row)
    if row.form == "cell":  # a loop has no ranges
        layer.unroll = True
    inputs = [keras.Input(row.shape[1:], name=f"x{k}") for k in range(row.inputs)]
    outputs = rows.first(layer(inputs if row.inputs > 1 else inputs[0]))
    model = keras.Model(inputs, outputs)
    draw = np.random.default_rng(8)
    data = {
        one.name: draw.normal(0.5, 1, (SAMPLES, *row.shape[1:])).astype("float32") for one in inputs
    }
    options = {"norms": NORMS.get(form, "auto")}
    if form in ("int8", "int16x8"):
        options["representative_data"] = data
    path = tmp_path / "m.tflite"
    report = kn.tflite.convert(model, path, quantize=form, verify=False, **options)
    assert report.quantize == form
    with kn.portable():
        want = keras.ops.convert_to_numpy(model(list(data.values()), training=False))
    found = measure.distance(want, kn.tflite.run(path, data))
    print(f"{found.sqnr:.1f} dB")
    assert found.sqnr >= BOUNDS[form]


def test_what_is_expected_to_fail_is_in_the_table():
    assert set(EXPECTED) <= {(row.name, form) for row in rows.CATALOG for form in BOUNDS}
