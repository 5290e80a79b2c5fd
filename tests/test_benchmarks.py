"""The benchmark: its columns compute the same, its table is whole. No time is asserted."""

import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import need_fused

from benchmarks import __main__ as command
from benchmarks import memory, render, report, results, tf_columns
from benchmarks.cases import BOTH, CASES, FORWARD, INFERENCE, Case
from benchmarks.timing import Timing, interleave

TINY = Case("RMSNormalization", (3, 5))
MACHINE = {
    "date": "2026-01-31",
    "processor": "A processor",
    "threads": 2,
    "versions": {"keras": "3.15.1"},
    "torch": None,
}


def shrunk(case):
    groups = case.groups and min(case.groups, 4)
    return dataclasses.replace(case, shape=tuple(min(n, 8) for n in case.shape), groups=groups)


SHRUNK = sorted({shrunk(c) for c in CASES if c.family not in ("tiny", "awkward")}, key=repr)


def agree(got, want, case):
    # float16 and bfloat16 keep 11 and 8 bits; float32 sums of at most 4096 elements of unit scale.
    tolerance = {"float16": 1e-2, "bfloat16": 1e-1}.get(case.dtype, 1e-4)
    for g, w in zip(got, want, strict=True):
        g, w = np.asarray(g, "float64"), np.asarray(w, "float64")
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1, abs(w).max()))


@pytest.mark.parametrize("case", SHRUNK, ids=lambda c: f"{c.name}-{len(c.shape)}-{c.dtype}")
def test_columns_compute_the_same(case):
    x, dy = tf_columns.data(case)
    want = tf_columns.column("Keras graph", case, BOTH, x, dy)()[:2]
    agree(tf_columns.column("ours portable", case, BOTH, x, dy)()[:2], want, case)
    need_fused()
    agree(tf_columns.column("ours", case, BOTH, x, dy)()[:2], want, case)


@pytest.mark.parametrize("case", SHRUNK, ids=lambda c: f"{c.name}-{len(c.shape)}-{c.dtype}")
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
    want = tf_columns.column("Keras graph", case, BOTH, x, dy)()[:2]
    compared = []
    for name in torch_columns.FORMATS:
        try:
            call = torch_columns.column(name, case, BOTH, tensor(x), tensor(dy))
        except NotImplementedError:
            continue
        agree([array(t) for t in call()[:2]], want, case)
        compared.append(name)
    trailing = case.layer not in ("LayerNormalization", "RMSNormalization") or case.axis != 1
    assert bool(compared) == trailing


def test_every_case_has_its_own_row():
    assert len(set(CASES)) == len(CASES)
    for case in CASES:
        assert case.shape[0] > 0
        assert case.passes == ((FORWARD, BOTH) if case.training else (INFERENCE,))


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
    arguments = ["--quick", "--rounds", "3", "--seconds", "0.1", "--no-torch", "--no-memory"]
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


def kept(ours, keras=4.0):
    def timing(ms):
        return Timing(ms, ms, ms, ms, calls=3)

    columns = {"ours": timing(ours), "Keras graph": timing(keras), "Keras XLA": timing(2 * keras)}
    columns |= {"torch NCHW": timing(3.0), "copy": timing(0.5), "ours XLA": "RuntimeError: no"}
    case = Case("GroupNormalization", (32, 56, 56, 64), groups=32)
    peaks = [results.Memory(case, "ours", 3 << 20), results.Memory(case, "Keras XLA", None, "no")]
    return results.Result(MACHINE, [results.Row(case, BOTH, columns)], peaks)


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


def test_render_replaces_what_stands_between_the_markers():
    text = f"before\n{render.BEGIN}\nold\n{render.END}\nafter\n"
    got = render.render(text, kept(2.0))
    assert got.startswith(f"before\n{render.BEGIN}\n")
    assert got.endswith(f"\n{render.END}\nafter\n")
    assert "old" not in got
    assert (
        "| `GroupNormalization(32)` | 32×56×56×64 | forward+backward "
        "| 2 |  | 4 | **2.0** | 3 | 1.6 |" in got
    )
    assert "| ours | 3 |" in got
    assert render.render(got, kept(2.0)) == got


def test_render_needs_its_markers():
    with pytest.raises(ValueError, match="once each"):
        render.render(f"{render.END}\n{render.BEGIN}", kept(2.0))


@pytest.mark.slow
def test_fused_step_needs_less_memory_than_keras():
    need_fused()
    ours, keras = memory.measure(memory.SMALL, ("ours", "Keras graph"), repeats=2)
    assert ours.why_not is None
    assert keras.why_not is None
    assert ours.bytes < keras.bytes
    assert ours.bytes < 1.1 * ours.outputs  # nothing of x's size is kept beside y and dx
