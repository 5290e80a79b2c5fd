"""int16x8 on samples that are alike, and int8 on samples of which the strength varies."""

import re
from collections.abc import Callable

import numpy as np

from benchmarks.mobile import files, models
from benchmarks.mobile.isolated import Isolated
from benchmarks.mobile.results import GAIN, INT16X8, KERAS, OURS, WITHOUT, Quantized
from keras_norms.tflite import measure as decibels
from keras_norms.tflite.probe import probe
from tests import tflite_nets

SAMPLES = 32  # of a catalog's row; the file is calibrated on them, so that none is clipped
# Their shapes and samples are those of the quantizer's tests: the ranges of the 24 hold the 12.
STRESS = {"conv": (28, 28, 32), "dense": (128, 256)}
# What is worth saying of TensorFlow's and LiteRT's messages.
REASONS = {
    re.compile(r"not yet supported for op: '(\w+)'"): "not written: {}",
    re.compile(r"Node number \d+ \((\w+)\) failed to"): "does not run: {}",
    re.compile(r"process was ended by (\w+)"): "ends the process: {}",
}


def measure(say: Callable[[str], None]) -> list[Quantized]:
    with Isolated() as isolated:
        rows = []
        for name in models.ROWS:
            say(f"int16x8: {name}")
            rows.append(_alike(isolated, name))
        without = {net: _without(net) for net in STRESS}
        for k, norm in enumerate(models.STRESSED):
            say(f"int8 at varying gain: {norm.name}, {norm.net}")
            rows.append(_varying(isolated, k, without[norm.net]))
    return rows


def _alike(isolated: Isolated, name: str) -> Quantized:
    given = models.samples(models.ROWS[name], SAMPLES, 0.5, 1, seed=0)
    test = files.batches(given)
    keras_model, model = (models.catalog(name, keras_own) for keras_own in (True, False))
    columns = {
        KERAS: _quality(
            lambda: isolated(files.tf_quantized, models.catalog, (name, True), "int16x8", test),
            models.outputs(keras_model, given),
            test,
        ),
        OURS: _quality(
            lambda: _ours(model, "int16x8", given, norms="quantized"),
            models.outputs(model, given),
            test,
        ),
    }
    return Quantized(INT16X8, name, "", name in models.IN_KERAS, columns)


def _varying(isolated: Isolated, index: int, without: list[float] | str) -> Quantized:
    norm = models.STRESSED[index]
    given, test = _gains(norm.net)
    model = stressed(index)
    want = models.outputs(model, _joined(test))
    columns = {
        KERAS: _quality(
            lambda: isolated(files.tf_quantized, stressed, (index,), "int8", given), want, test
        ),
        OURS: _quality(lambda: _ours(model, "int8", _joined(given)), want, test),
        WITHOUT: without,
    }
    return Quantized(GAIN, norm.name, norm.net, norm.in_keras, columns)


def _without(net: str) -> list[float] | str:
    """The same of the network without norms, by our converter."""
    norm = next(norm for norm in models.STRESSED if norm.net == net)
    given, test = _gains(net)
    model = models.sandwich(norm, STRESS[net], without=True)
    want = models.outputs(model, _joined(test))
    return _quality(lambda: _ours(model, "int8", _joined(given)), want, test)


def _gains(net: str) -> tuple[list[dict], list[dict]]:
    """Batches of one, to calibrate on and to test with."""
    return tflite_nets.gain(net, 24, 1), tflite_nets.gain(net, 12, 2)


def _joined(batches: list[dict]) -> dict[str, np.ndarray]:
    return {"x": np.concatenate([batch["x"] for batch in batches])}


def _ours(model, mode: str, given: dict[str, np.ndarray], **options) -> bytes:
    options |= {"quantize": mode, "representative_data": given, "verify": False}
    return files.ours(model, **options)[0]


def stressed(index: int):
    """The model of a row of `models.STRESSED`, in another process."""
    norm = models.STRESSED[index]
    return models.sandwich(norm, STRESS[norm.net])


def _quality(make: Callable[[], bytes], want: np.ndarray, test: list[dict]) -> list[float] | str:
    try:
        got = probe(make(), test).outputs
    except Exception as error:  # reported; other layers go on
        message = str(error)
        for pattern, said in REASONS.items():
            if found := pattern.search(message):
                return said.format(found[1])
        return " ".join(message.split())[:200]
    (y,) = got.values()
    found = decibels.distance(want, y.reshape(want.shape))
    return [round(found.sqnr, 1), round(found.worst, 1)]
