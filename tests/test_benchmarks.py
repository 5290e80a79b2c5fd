"""The benchmark: its columns compute the same, its table is whole. No time is asserted."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import need_fused

import keras_norms
from benchmarks import __main__ as command
from benchmarks import (
    chart,
    compare,
    floor,
    goals,
    layers,
    machine,
    memory,
    models,
    render,
    report,
    results,
    tf_columns,
)
from benchmarks.cases import BOTH, CASES, FORWARD, INFERENCE, NORMS, STEP, Case
from benchmarks.timing import Timing, interleave
from benchmarks.worker import Worker

TINY = Case("RMSNormalization", (3, 5))
MACHINE = {
    "date": "2026-01-31",
    "processor": "A processor",
    "threads": 2,
    "versions": {"keras": "3.15.1"},
    "cache": 32 << 20,
    "commit": "abcdef0",
}


def shrunk(case):
    groups = case.groups and min(case.groups, 4)
    return dataclasses.replace(case, shape=tuple(min(n, 8) for n in case.shape), groups=groups)


SHRUNK = sorted(
    {shrunk(c) for c in CASES if not c.model and c.family not in ("tiny", "awkward")}, key=repr
)
MODELS = {c: shrunk(c) for c in CASES if c.model}


def agree(got, want, case):
    # float16 and bfloat16 keep 11 and 8 bits; float32 sums of at most 4096 elements of unit scale.
    tolerance = {"float16": 1e-2, "bfloat16": 1e-1}.get(case.dtype, 1e-4)
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g, "float64"), np.asarray(w, "float64")
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1, abs(w).max()))


def name_of(case):
    return f"{case.name}-{len(case.shape)}-{case.dtype}"


@pytest.mark.parametrize("case", SHRUNK, ids=name_of)
def test_columns_compute_the_same(case):
    x, dy = tf_columns.data(case)
    first = 1 + layers.inputs(case)  # y, then the gradients of the inputs

    def results_of(name):
        return tf_columns.column(name, case, BOTH, x, dy)()[:first]

    portable = results_of("ours portable")
    try:
        want = results_of("Keras graph")
    except NotImplementedError:
        assert case.layer not in NORMS
        want = portable
    agree(portable, want, case)
    need_fused()
    agree(results_of("ours"), want, case)


@pytest.mark.parametrize("case", MODELS.values(), ids=lambda c: c.name)
def test_models_have_the_same_loss_after_a_step(case):
    x, labels = tf_columns.data(case)
    losses = []
    for whose in ("keras", "keras_norms"):
        step = models.train_step(whose, case)
        losses.append([float(step(x, labels)) for _ in range(2)])
    (before, after), ours = losses
    assert abs(after - before) > 1e-2  # the step changed the model
    # float32 sums of at most 2000 terms; Adam divides a gradient by its own size.
    np.testing.assert_allclose(ours, [before, after], rtol=1e-4)


def test_model_columns_are_traced_training_steps():
    need_fused()
    case = MODELS[next(c for c in MODELS if c.model == "CNN")]
    x, labels = tf_columns.data(case)
    ours, keras = (
        tf_columns.column(name, case, STEP, x, labels) for name in ("ours", "Keras graph")
    )
    first, second, third = (float(ours()) for _ in range(3))
    assert first > second > third
    assert float(keras()) == pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("case", SHRUNK, ids=name_of)
def test_torch_columns_compute_the_same(case):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_columns

    def tensor(t):
        return torch.tensor(np.asarray(t, "float64")).to(getattr(torch, case.dtype))

    def array(t):
        t = t.detach().double().numpy()
        rows = case.layer in ("LayerNormalization", "RMSNormalization")
        return t if rows else np.moveaxis(t, 1, case.axis)

    x, dy = tf_columns.data(case)
    compared = []
    for name in torch_columns.NAMES:
        try:
            first = x[0] if isinstance(x, list) else x
            call = torch_columns.column(name, case, BOTH, tensor(first), tensor(dy))
        except NotImplementedError:
            continue
        want = tf_columns.column("Keras graph", case, BOTH, x, dy)()[:2]
        agree([array(t) for t in call()[:2]], want, case)
        compared.append(name)
    trailing = case.layer not in ("LayerNormalization", "RMSNormalization") or case.axis != 1
    assert bool(compared) == (trailing and case.layer in NORMS)


ADDONS = """
import json, sys
import numpy as np
import tensorflow as tf
from benchmarks import addons_columns
from benchmarks.cases import BOTH, Case

cases, path = json.loads(sys.argv[1]), sys.argv[2]
data = np.load(path)
found = {}
for i, kept in enumerate(cases):
    x, dy = (tf.constant(data[f"{name}_{i}"]) for name in ("x", "dy"))
    for name in addons_columns.NAMES:
        try:
            y, dx, *_ = addons_columns.column(name, Case.of(kept), BOTH, x, dy)()
        except NotImplementedError:
            continue
        found |= {f"{name}_y_{i}": y.numpy(), f"{name}_dx_{i}": dx.numpy()}
np.savez(path, **found)
"""


@pytest.mark.peers
def test_addons_columns_compute_the_same(tmp_path):
    python = os.environ.get("KERAS_NORMS_ADDONS_PYTHON")
    if not python:
        pytest.fail("KERAS_NORMS_ADDONS_PYTHON must name its Python: run `make test-peers`.")
    cases = [c for c in SHRUNK if c.dtype == "float32" and layers.inputs(c) == 1]
    data = [tf_columns.data(case) for case in cases]
    path = tmp_path / "data.npz"
    arrays = {f"x_{i}": x for i, (x, _) in enumerate(data)}
    np.savez(path, **arrays, **{f"dy_{i}": dy for i, (_, dy) in enumerate(data)})
    question = json.dumps([dataclasses.asdict(case) for case in cases])
    subprocess.run(
        [python, "-c", ADDONS, question, path], check=True, cwd=Path(__file__).parents[1]
    )
    found = np.load(path)
    compared = set()
    for i, (case, (x, dy)) in enumerate(zip(cases, data, strict=True)):
        want = None
        for name in ("addons graph", "addons XLA"):
            if f"{name}_y_{i}" not in found:
                continue
            want = want or tf_columns.column("ours portable", case, BOTH, x, dy)()[:2]
            agree([found[f"{name}_{what}_{i}"] for what in ("y", "dx")], want, case)
            compared.add((case.layer, name))
    assert len({layer for layer, _ in compared}) == 5


def test_worker_says_why_there_are_no_columns():
    workers = {
        "No such file": Worker("addons", 1, Path("/no/python")),
        "ended with exit code 1": Worker("addons", 1, "false"),
        "not installed: No module named 'benchmarks.unknown_columns'": Worker("unknown", 1),
    }
    for why_not, worker in workers.items():
        (answer,) = worker.open(TINY, FORWARD).values()
        worker.close()
        assert why_not in answer
        assert worker.version is None
    assert Worker("unknown", 1, "false", families=("tiny",)).open(TINY, FORWARD) == {}


def test_worker_times_the_columns_of_torch():
    torch = pytest.importorskip("torch")
    worker = Worker("torch", 1)
    assert worker.version == torch.__version__
    columns = worker.open(TINY, BOTH)
    assert columns["torch channels_last"] == "PyTorch has one memory format for this row."
    walls, cpu = columns["torch NCHW"].sample(3)
    assert len(walls) == 3
    assert min(walls) > 0
    assert cpu > 0
    worker.close()


def test_every_case_has_its_own_row():
    assert len(set(CASES)) == len(CASES)
    for case in CASES:
        assert case.shape[0] > 0
        layer = (FORWARD, BOTH) if case.training else (INFERENCE,)
        assert case.passes == ((STEP,) if case.model else layer)
        assert hasattr(keras_norms, case.layer)


def test_interleave_visits_columns_in_turn():
    visits = []

    class Column:
        def __init__(self, name):
            self.name = name

        def sample(self, calls):
            visits.append(self.name)
            return [0.005] * calls, 0.01

    timings = interleave({"a": Column("a"), "b": Column("b")}, rounds=4)
    assert visits == ["a", "a", "b", "b"] + ["a", "b"] * 4
    assert timings["a"] == Timing(5.0, 5.0, 10.0, 10.0, calls=16)


def test_run_prints_and_keeps_a_whole_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "QUICK", (TINY,))
    arguments = ["--quick", "--rounds", "3", "--seconds", "0.1", "--no-peers", "--no-memory"]
    result = command.run(command._options(arguments))
    assert [row.passes for row in result.rows] == [FORWARD, BOTH]
    printed = capsys.readouterr().out
    assert all(report.line(row) in printed for row in result.rows)
    for row in result.rows:
        assert set(row.columns) == {*tf_columns.COLUMNS, results.COPY}
        for name in (*results.KERAS, "ours portable", results.COPY):
            timing = row.timing(name)
            assert 0 < timing.wall_min <= timing.wall_median
            assert timing.calls >= 3
    path = tmp_path / "kept" / "2026-01-31-cpu.json"
    results.write(result, path)
    assert results.read(path) == result
    assert results.latest(path.parent) == path
    assert json.loads(path.read_text())["machine"]["threads"] == 2
    need_fused()
    for row in result.rows:
        for number in (row.ratio(), row.ratio("cpu_min"), row.to_limit, row.gigabytes_per_second):
            assert math.isfinite(number)
            assert number > 0


def timing(ms):
    return Timing(ms, ms, ms, ms, calls=3)


GN = Case("GroupNormalization", (32, 56, 56, 64), groups=32)
BN = Case("BatchNormalization", (32, 56, 56, 64))


def kept(ours, keras=4.0, case=GN, passes=BOTH, machine=MACHINE):
    columns = {"ours": timing(ours), "Keras graph": timing(keras), "Keras XLA": timing(2 * keras)}
    columns |= {"torch NCHW": timing(3.0), "copy": timing(0.5), "ours XLA": "RuntimeError: no"}
    peaks = [
        results.Memory(case, "ours", 3 << 20, saved=1 << 20),
        results.Memory(case, "Keras XLA", None, "no"),
    ]
    return results.Result(machine, [results.Row(case, passes, columns)], peaks)


def test_numbers_follow_from_the_times():
    (row,) = kept(2.0).rows
    assert row.ratio() == 0.5
    assert row.to_limit == 2.0 / (2.5 * 0.5)
    size = 32 * 56 * 56 * 64 * 4
    assert row.gigabytes_per_second == pytest.approx(5 * size / 2e-3 / 1e9)
    assert row.best(results.TORCH).wall_min == 3.0
    assert kept(2.0).slow_rows == []
    (slow,) = kept(8.1).slow_rows
    assert "SLOWER than 2x" in report.line(slow)
    summary = report.summary(kept(8.1))
    assert "1 of 1 rows slower than 2x" in summary
    assert "ours XLA lacks 1: RuntimeError: no" in summary
    assert "of which y and dx are 49.0 MiB" in summary
    assert "  ours              3.0 MiB     1.0 MiB" in summary


def test_models_and_other_layers_have_no_copy_limit():
    for case in (next(iter(MODELS)), Case("DynamicTanh", (512, 768))):
        (row,) = kept(2.0, case=case, passes=case.passes[-1]).rows
        assert row.to_limit is None
        assert row.gigabytes_per_second is None
        assert case.name in report.line(row)


@pytest.mark.parametrize(
    "case, passes, cache, want",
    [
        (BN, FORWARD, BN.bytes, 1.0),  # x stays in the cache
        (BN, FORWARD, BN.bytes - 1, 1.5),
        (BN, BOTH, 2 * BN.bytes, 2.5),  # x and dy stay
        (BN, BOTH, BN.bytes, 3.5),
        (BN, BOTH, BN.bytes - 1, 4.0),
        (BN, BOTH, None, 2.5),
        (dataclasses.replace(BN, training=False), INFERENCE, 1, 1.0),
        (GN, FORWARD, 1, 1.0),
        (GN, BOTH, 1, 2.5),
        (Case("DynamicTanh", (512, 768)), FORWARD, 1, None),
        (Case("LayerNormalization", (16, 128), model="Transformer"), STEP, 1, None),
    ],
)
def test_floor_counts_what_must_move(case, passes, cache, want):
    assert floor.copies(case, passes, cache) == want


def test_last_level_cache_is_that_of_the_system(tmp_path):
    assert machine.last_level_cache(tmp_path / "none") is None
    for index, (level, size) in enumerate(((1, "32K"), (3, "32M"), (2, "1024K"))):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert machine.last_level_cache(tmp_path) == 32 << 20


def test_goals_name_the_rows_that_fall_short():
    assert goals.mean_ratio(kept(2.0), BOTH) == pytest.approx(0.5)
    assert goals.mean_ratio(kept(2.0), FORWARD) is None
    assert goals.summary(kept(1.5)) == [
        (
            "forward+backward of the usual shapes: 2.67 times faster than the better of Keras' "
            "graph and XLA, geometric mean.",
            [],
        ),
        ("PyTorch is faster in 0 of 1 rows (named with our time over its).", []),
        (
            "0 of 1 rows of tensors of 12 MB and more take over 1.5 times their own floor: the "
            "copies that they must make with a cache of 32 MiB, 1 to 1.5 forward and 2.5 to 4 "
            "forward and backward.",
            [],
        ),
    ]
    label = "GroupNormalization(32) 32x56x56x64 float32 forward+backward"
    torch, far = goals.summary(kept(3.75))[1:]
    assert torch[1] == [f"{label}: 1.2"]
    assert far[1] == [f"{label}: 3.0"]
    # Statistics of the batch: x alone stays in the cache, so 3.5 copies are the floor.
    assert goals.over_floor(kept(3.5, case=BN))[0][1] == pytest.approx(2.0)
    assert goals.over_floor(kept(3.5, machine=MACHINE | {"cache": None})) == []


def test_compare_reports_ratios_and_no_times():
    before = kept(2.0)
    twice = kept(4.0, keras=8.0)  # a slower machine: Keras took twice as long, too
    twice.rows[0].columns["copy"] = timing(1.0)
    assert compare.changes(twice, before) == []
    (keras, copy) = compare.changes(kept(3.0), before)
    assert (keras.ratio, keras.before, keras.now) == ("ours / best of Keras", 0.5, 0.75)
    assert copy.ratio == "ours / copy limit"
    assert (keras.factor, copy.factor) == pytest.approx((1.5, 1.5))
    assert compare.changes(kept(3.0), before, factor=1.6) == []
    assert [c.factor for c in compare.changes(kept(1.0), before)] == [0.5, 0.5]
    assert compare.changes(kept(9.0, case=BN), before) == []  # a row that was not measured then
    text = compare.report(kept(3.0), before)
    assert "2026-01-31 (commit abcdef0), 1 rows in both" in text
    assert "worse: 2\n  GroupNormalization(32) 32x56x56x64 float32 forward+backward" in text
    assert text.endswith("better: 0")
    now = kept(3.0)
    now.rows[0].columns["ours"] = "RuntimeError: no library"  # nothing to compare is not "the same"
    assert ", 0 rows in both" in compare.report(now, before)


def test_compare_wants_medians_and_minima_to_agree():
    before, now = kept(2.0), kept(2.0)
    now.rows[0].columns["ours"] = Timing(2.1, 4.0, 2.0, 2.0, calls=3)  # a loaded machine
    assert compare.changes(now, before) == []
    now.rows[0].columns["ours"] = Timing(2.8, 4.0, 2.0, 2.0, calls=3)
    assert [c.factor for c in compare.changes(now, before)] == [pytest.approx(1.4)] * 2


def test_compare_finds_the_run_before_on_the_same_machine(tmp_path, capsys):
    def keep(date, **about):
        path = tmp_path / f"{date}-cpu.json"
        results.write(kept(2.0, machine=MACHINE | {"date": date} | about), path)
        return path

    first, last = keep("2026-01-31"), keep("2026-03-01")
    keep("2026-02-15", processor="Another")
    keep("2026-02-16", threads=8)
    assert compare.previous(results.read(last).machine, tmp_path) == first
    assert compare.previous(results.read(first).machine, tmp_path) is None
    today = MACHINE | {"date": "2026-03-01", "commit": "1234567"}
    assert compare.previous(today, tmp_path) == last
    assert command.main(["--json", str(last), "--compare", str(first)]) == 0
    assert "Compared with 2026-01-31" in capsys.readouterr().out
    assert command.main(["--json", str(first), "--compare"]) == 0
    assert "Nothing to compare with" in capsys.readouterr().out


def test_render_replaces_what_stands_between_the_markers():
    text = f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n"
    got = render.render(text, kept(2.0), "results/chart.png")
    assert got.startswith(f"before\n{render.BEGIN}\n")
    assert got.endswith(f"\n{render.END}\nafter\n")
    assert "old" not in got
    assert "](results/chart.png)\n" in got
    assert "| pass | ours | best of Keras | times faster | torch | × copy limit |\n" in got
    assert "| --- | --- | --- | --: | --: | --: | --: | --: |\n" in got
    assert (
        "| `GroupNormalization(32)` | 32×56×56×64 | forward+backward "
        "| 2 | 4 | **2.0** | 3 | 1.6 |" in got
    )
    assert "| `GroupNormalization(32)` 32×56×56×64 | 24 | 49 | 3 / 1 |  |" in got
    assert "2.00 times faster than the better of Keras' graph and XLA" in got
    assert render.render(got, kept(2.0), "results/chart.png") == got


def test_render_has_tables_for_models_and_for_layers_that_keras_lacks():
    (model, *_), other = MODELS, Case("DynamicTanh", (512, 768), family="more layers")
    columns = {"ours": timing(2.0), "ours XLA": timing(1.0), "ours portable": timing(5.0)}
    rows = [
        *kept(2.0, case=model, passes=STEP).rows,
        results.Row(other, FORWARD, columns | {"Keras graph": "Keras has no such layer."}),
    ]
    got = render.section(results.Result(MACHINE, rows, []))
    assert "| CNN, `BatchNormalization()` | 32×32×32×3 | train step | 2 | 4 | 8 | **2.0** |" in got
    assert "| `DynamicTanh()` | 512×768 | forward | 2 | 1 | 5 | **2.5** |" in got


def test_render_needs_its_markers():
    with pytest.raises(ValueError, match="once each"):
        render.render(f"{render.END}\n{render.BEGIN}", kept(2.0))


def test_render_draws_the_chart_beside_the_result(tmp_path):
    pytest.importorskip("matplotlib")
    path, readme = tmp_path / "kept" / "2026-01-31-cpu.json", tmp_path / "README.md"
    results.write(kept(2.0), path)
    readme.write_text(f"{render.BEGIN}\n{render.END}\n")
    pictures = []
    for _ in range(2):
        assert render.main(["--json", str(path), str(readme)]) == 0
        pictures.append(path.with_suffix(".png").read_bytes())
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] == pictures[1]
    assert "](kept/2026-01-31-cpu.png)" in readme.read_text()
    results.write(kept(3.0), path)
    render.main(["--json", str(path), str(readme)])
    assert path.with_suffix(".png").read_bytes() != pictures[0]


def test_chart_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "keras-norms\[bench\]"'):
        chart.draw(kept(2.0), tmp_path / "chart.png")


@pytest.mark.slow
def test_fused_step_needs_less_memory_than_keras():
    need_fused()
    columns = ("ours", "ours portable", "Keras graph")
    ours, portable, keras = memory.measure(memory.SMALL, columns, repeats=2)
    for measured in (ours, portable, keras):
        assert measured.why_not is None
    assert ours.bytes < keras.bytes
    assert ours.bytes < 1.1 * ours.outputs  # nothing of x's size is kept beside y and dx
    # What a tape keeps: x and, in a row per sample, two numbers a group.
    x = ours.case.bytes
    assert x <= ours.saved < 1.1 * x
    assert portable.saved > 1.9 * x  # x - mean, at least, is kept, too
