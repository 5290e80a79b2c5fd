"""The converter's benchmark: what it compares is the same network, and the page is its result.

No time is asserted.
"""

import dataclasses
import os

import numpy as np
import pytest
from rows import CATALOG

from benchmarks.mobile import files, goals, integers, latency, models, render, results, tables
from benchmarks.mobile.isolated import Isolated
from benchmarks.mobile.results import (
    ANY,
    APPLICATIONS,
    CPU,
    CUSTOM,
    GAIN,
    INT16X8,
    KERAS,
    KERAS_WITHOUT,
    NORMS,
    OURS,
    WITHOUT,
    WRAPPERS,
    Errors,
    File,
    Latency,
    OnGpu,
    Quantized,
    Result,
    Timed,
)

MACHINE = {
    "date": "2026-01-31",
    "commit": "abcdef0",
    "processor": "A processor",
    "cores": 2,
    "system": "Linux",
    "versions": {"keras": "3.15.1"},
    "load": [1.5, 1.0, 3.25],
}


def file(least, size=1000, ops=3, **counts):
    return File(size, {"CONV_2D": ops}, Latency(least, least, least, 9), **counts)


def timed(table, name, net="conv", in_keras=True, **least):
    """Of files by column, each with a size of its own; what is a string is why there is none."""
    columns = {KERAS_WITHOUT: 1000.0, WITHOUT: 1000.0, **least}
    made = {
        column: time if isinstance(time, str) else file(time, size=1000 + 10 * k)
        for k, (column, time) in enumerate(columns.items())
    }
    return Timed(table, name, net, in_keras, made)


NORM = timed(NORMS, "GroupNormalization(8)", **{KERAS: 1600.0, CPU: 1100.0, ANY: 1002.0})
NORM.files[CUSTOM] = "RuntimeError: no library"
WRAPPED = timed(
    WRAPPERS, "WeightNormalization(Conv2D)", in_keras=False, **{KERAS: 2000.0, ANY: 1004.0}
)
NETWORK = Timed(
    APPLICATIONS,
    "MobileNetV2",
    "224x224x3",
    True,
    {
        KERAS: file(2000.0, ops=7),
        ANY: file(2100.0, ops=8, norms=4, folded=3),
    },
)
DECIBELS = {"0.01": 60.0, "1": 60.0, "100": 44.0, "5000": -150.0}
RESULT = Result(
    MACHINE,
    {"the custom op": "no library"},
    [NORM, WRAPPED, NETWORK],
    [OnGpu("RMSNormalization", True, {KERAS: "NEG: no.", OURS: DECIBELS})],
    [
        Quantized(INT16X8, "RMSNormalization", "", True, {KERAS: "no kernel", OURS: [37.0, 30.0]}),
        Quantized(
            GAIN,
            "RMSNormalization",
            "dense",
            True,
            {KERAS: [5.0, -1.0], OURS: [20.0, 19.0], WITHOUT: [27.0, 9.0]},
        ),
    ],
    [Errors("RMSNormalization", {"any": {"LiteRT": 2e-6, "tf.lite": 2e-5}, "cpu": "ValueError"})],
)


# ---- The page ---------------------------------------------------------------------------------


def test_the_page_is_what_the_kept_result_renders():
    text = render.PAGE.read_text()
    assert render.render(text, results.read(results.latest())) == text
    assert render.unknown(text) == []


def test_the_kept_result_is_whole():
    kept = results.read(results.latest())
    names = [row.name for row in CATALOG]
    assert [row.name for row in kept.errors] == names
    assert [row.name for row in kept.of(INT16X8)] == names
    assert [row.name for row in kept.gpu] == names or "the GPU delegate" in kept.missing
    timed = {table: [row.name for row in kept.of(table)] for table in (NORMS, APPLICATIONS)}
    assert timed[NORMS] == [norm.name for norm in models.NORMS]
    assert timed[APPLICATIONS] == ["MobileNetV2", "EfficientNetB0"]
    assert goals.NAMED in [row.name for row in kept.of(WRAPPERS)]
    assert {(row.name, row.net) for row in kept.of(NORMS)} >= set(goals.LESS)


def test_what_is_kept_is_read_again(tmp_path):
    path = tmp_path / "kept" / "2026-01-31-mobile.json"
    results.write(RESULT, path)
    assert results.read(path) == RESULT
    assert results.latest(path.parent) == path
    with pytest.raises(FileNotFoundError, match="makes one"):
        results.latest(tmp_path)


def test_rendering_writes_every_table(tmp_path):
    path, page = tmp_path / "2026-01-31-mobile.json", tmp_path / "page.md"
    results.write(RESULT, path)
    empty = "\n".join(f"{render.begin(n)}\nold\n{render.end(n)}" for n in tables.BLOCKS)
    page.write_text(f"before\n{empty}\nafter\n")
    assert render.main(["--json", str(path), str(page)]) == 0
    got = page.read_text()
    assert got.startswith("before\n")
    assert got.endswith("\nafter\n")
    assert "\nold\n" not in got
    assert "Load average during the run: 1 to 3.25" in got
    assert "Not measured: the custom op, for no library" in got
    assert (
        "| layer norm over the last axis | centred | centred | centred | scaled | centred |" in got
    )
    # 600 µs with Keras, 100 with "cpu", and 2 of 1000 are nothing that can be told.
    assert (
        "| `GroupNormalization(8)` | conv | 600 | 100 | < 10 | RuntimeError: no library "
        "| 6.0 | > 60.0 |  | 6 |" in got
    )
    assert "| `WeightNormalization(Conv2D)`¹ | 1000 | 2000 | 1000 | 1004 | 2.00 | 1.00 |" in got
    assert "| MobileNetV2 | ours, `any` | 3 of 4 | 8 | 1,000 | 2.10 |" in got
    assert (
        "| `RMSNormalization` | no (1) | yes |  |  |  |  | 60.0 | 60.0 | 44.0 | not finite |" in got
    )
    assert "(1) NEG: no." in got
    assert "| `RMSNormalization` | no kernel | 37.0 |" in got
    assert "| dense | 5.0 (-1.0) | 20.0 (19.0) | 27.0 (9.0) | -7.0 |" in got
    assert "| `any` | tf.lite | 2.0e-05 | `RMSNormalization` |" in got
    render.main(["--json", str(path), str(page)])
    assert page.read_text() == got
    with pytest.raises(ValueError, match="once each"):
        render.render(f"{got}{render.begin('norms')}", RESULT)


def test_goals_name_what_falls_short():
    assert goals.shortfalls(RESULT) == [
        "`GroupNormalization(8)`, conv: no time for custom op: RuntimeError: no library",
        "`RMSNormalization` on the GPU delegate at deviation 100: 44.0, not 45 dB.",
        "`RMSNormalization` on the GPU delegate at deviation 5000: not finite, not 45 dB.",
        "`RMSNormalization` in int16x8: 37.0 dB, not 38.",
        "`RMSNormalization`, dense in int8 at varying gain: 20.0 dB, 7.0 below the network "
        "without it.",
        '`RMSNormalization`, target="any": off by 2e-05.',
        '`RMSNormalization`, target="cpu": ValueError',
        'MobileNetV2, target="any": 3 of 4 norms are folded.',
        'MobileNetV2, target="any": 8 operations, Keras\' file 7.',
        'MobileNetV2, target="any": 2,100 µs, Keras\' file 2,000.',
    ]
    slow = timed(NORMS, "InstanceNormalization", **{KERAS: 1100.0, CPU: 1200.0})
    assert goals.shortfalls(dataclasses.replace(RESULT, timed=[slow], gpu=[], quantized=[]))[
        :2
    ] == [
        "`InstanceNormalization`, conv takes 0.5 times less than Keras', not 11 times.",
        "`InstanceNormalization`, conv takes longer than Keras': 200 µs instead of 100.",
    ]
    assert goals.shortfalls(Result(MACHINE, {})) == []


def test_a_missing_runtime_says_why():
    without = Result(MACHINE, {"the GPU delegate": "apt-get is missing"})
    assert tables.gpu(without) == "Not measured: apt-get is missing."


def test_what_a_norm_costs():
    assert NORM.cost(KERAS) == 600
    assert NORM.gain(CPU) == 6
    assert NORM.gain(ANY) == 60  # at least: 2 of 1000 µs may be nothing
    assert NORM.gain(CUSTOM) is None
    assert NORM.growth(CPU) == 20
    nothing = timed(NORMS, "BatchNormalization", **{KERAS: 1003.0, CPU: 990.0})
    assert nothing.cost(CPU) == 0
    assert nothing.gain(CPU) is None


# ---- What is compared --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(models.IN_KERAS) - {"SpectralNormalization"}))
def test_networks_of_keras_compute_the_same(name):
    """(Ours of spectral norm is the reparametrized one, with weights of its own.)"""
    keras_model, ours = models.catalog(name, True), models.catalog(name, False)
    ours.set_weights(keras_model.get_weights())
    x = models.samples(models.ROWS[name], 3, 0.5, 1, seed=0)
    want, got = (models.outputs(model, x) for model in (keras_model, ours))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())


def test_networks_of_keras_are_of_the_catalog():
    assert set(models.IN_KERAS) <= set(models.ROWS)
    assert set(goals.LESS) <= {(norm.name, norm.net) for norm in models.NORMS}


def test_the_two_networks_differ_by_the_norm_alone():
    norm = models.NORMS[0]
    with_norm, without = (models.sandwich(norm, (6, 5, 4), without=w) for w in (False, True))
    kernels = [[w.numpy() for w in m.weights if "kernel" in w.path] for m in (with_norm, without)]
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(with_norm.layers) == len(without.layers) + 1


# TensorFlow's converter warns of the very thing that a float32 interface is.
@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs:UserWarning")
def test_files_are_timed_and_quantized():
    norm = models.NORMS[3]
    model = models.sandwich(norm, (6, 5, 4))
    content = files.keras_export(model)
    (times,) = latency.visits({"a": latency.Visited(content)}, rounds=2).values()
    assert len(times) == 2 * latency.CALLS
    assert min(times) > 0
    assert latency.latency([3000, 1000, 2000]) == Latency(1.0, 1.2, 2.0, 3)
    draw = np.random.default_rng(0)
    batches = files.batches({"x": draw.normal(size=(10, 6, 5, 4)).astype("float32")})
    make = files.tf_quantized(models.sandwich, (norm, (6, 5, 4)), "int8", batches)
    want = models.outputs(model, {"x": np.concatenate([b["x"] for b in batches])})
    sqnr, worst = integers._quality(lambda: make, want, batches)
    assert sqnr > worst > 10

    def refused():
        return files.tf_quantized(models.sandwich, (norm, (6, 5, 4)), "int16x8", batches)

    assert integers._quality(refused, want, batches) == "not written: NEG"


def test_a_call_may_end_its_process():
    with Isolated() as isolated:
        with pytest.raises(RuntimeError, match="died"):
            isolated(os._exit, 3)
        assert isolated(abs, -2) == 2
        with pytest.raises(TypeError):
            isolated(abs, "a")
