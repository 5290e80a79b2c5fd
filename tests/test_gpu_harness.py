"""benchmarks/gpu without a GPU.

Marked `cuda`: its library with the driver of tests/cuda, whose device memory is the CPU's
(`make test-cuda` sets that up). The others need PyTorch: `make test-torch` installs it.
"""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import cases, floors, results, sanitize, small, stage, table
from benchmarks.gpu.cases import BACKWARD, CHANNELS_FIRST, CHANNELS_LAST, FORWARD, Case, Geometry
from benchmarks.gpu.library import SIGNATURES, GpuError, Library

ROOT = Path(__file__).resolve().parents[1]
KERNELS = (ROOT / "custom_ops" / "cuda" / "kernels.cu").read_text()
TINY = (
    *cases.rows((6, 40), "float32"),
    *cases.rows((5, 33), "bfloat16"),
    *cases.images((2, 3, 5, 12), 4, "float32"),
    *cases.images((2, 2, 3, 3, 8), 2, "float16"),
)


@pytest.fixture(scope="module")
def library():
    assert os.environ.get("FAKE_CUDA_PRIMARY"), "run `make test-cuda`"
    return Library()


# The library, by the driver of tests/cuda ------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_six_functions_on_arrays(library, activation):
    """Against NumPy; check.py does so for all geometries and types, with PyTorch."""
    k, draw = Geometry(2, 5, 3, 4, 7), np.random.default_rng(0)

    def drawn(*shape, mean=0.0):
        return draw.normal(mean, 1, shape).astype("float32")

    x, dy, gamma, beta = drawn(*k, mean=3), drawn(*k), drawn(3, 4), drawn(3, 4)
    center, scale, shift = drawn(2, 3, 4, mean=3), drawn(2, 3, 4), drawn(2, 3, 4)
    dmean, dvariance = drawn(2, 3), drawn(2, 3)
    mean, residual, variance = (np.full((2, 3), np.nan, "float32") for _ in range(3))
    y, dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
    dgamma, dbeta = np.full_like(gamma, np.nan), np.full_like(gamma, np.nan)
    dscale, dshift = np.full_like(scale, np.nan), np.full_like(scale, np.nan)
    workspace = np.full(library.workspace_bytes("float32", k) + 16, 255, "uint8")
    workspace = workspace[-workspace.ctypes.data % 16 :]

    def unit(v):
        return v.astype("float64").reshape(2, 1, 3, 1, 1)

    def channel(v):
        return v.astype("float64").reshape(-1, 1, 3, 4, 1)

    def close(got, want):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

    over, wide = (1, 3, 4), x.astype("float64")
    means = wide.mean(over, keepdims=True)
    variances = wide.var(over, keepdims=True)
    rstd = 1 / np.sqrt(variances + 0.1)
    centred = (wide - means) * rstd
    z = centred * channel(gamma) + channel(beta)
    dz = dy * (z > 0) if activation == "relu" else dy
    library.normalize(
        *("float32", k, x, gamma, beta, 0.1, True, activation, y, mean, variance),
        *(workspace, None),
    )
    assert library.kernels == [*("segment_moments_float32x4", "merge_moments", "apply_float32x1")]
    close(y, np.maximum(z, 0) if activation == "relu" else z)
    close(mean, means.reshape(2, 3))
    close(variance, variances.reshape(2, 3))
    library.normalize_grad(
        *("float32", k, dy, x, gamma, beta, mean, variance, 0.1, True, activation),
        *(dx, dgamma, dbeta, workspace, None),
    )
    g = dz * channel(gamma)
    through = g.mean(over, keepdims=True) + centred * (g * centred).mean(over, keepdims=True)
    close(dx, rstd * (g - through))
    close(dgamma, (dz * centred).sum((0, 1, 4)))
    close(dbeta, dz.sum((0, 1, 4)))
    library.moments("float32", k, x, True, mean, residual, variance, workspace, None)
    close(mean.astype("float64") + residual, means.reshape(2, 3))
    library.moments_grad("float32", k, x, mean, residual, dmean, dvariance, dx, workspace, None)
    close(dx, (unit(dmean) + unit(dvariance) * 2 * (wide - means)) / k.count)
    library.scale_shift("float32", k, x, center, scale, shift, activation, y, None)
    z = (wide - channel(center)) * channel(scale) + channel(shift)
    dz = dy * (z > 0) if activation == "relu" else dy
    close(y, np.maximum(z, 0) if activation == "relu" else z)
    library.scale_shift_grad(
        *("float32", k, dy, x, center, scale, shift, activation),
        *(dx, dscale, dshift, workspace, None),
    )
    close(dx, dz * channel(scale))
    close(dscale, (dz * (wide - channel(center))).sum((1, 4)))
    close(dshift, dz.sum((1, 4)))


@pytest.mark.cuda
def test_errors_are_told(library, monkeypatch):
    x, y = np.ones((2, 8), "float32"), np.empty((2, 8), "float32")
    k, scale = Geometry(2, 1, 1, 8, 1), np.ones((2, 8), "float32")

    def call(dtype="float32", geometry=k, activation="none"):
        library.scale_shift(dtype, geometry, x, None, scale, None, activation, y, None)

    for arguments, message in (
        ({"dtype": "float64"}, "dtype must be 0, 1 or 2. Received: -1"),
        ({"geometry": k._replace(d=-8)}, "Sizes must not be negative. Received: -8"),
        ({"activation": 7}, "activation must be 0 to 3. Received: 7"),
    ):
        with pytest.raises(GpuError) as caught:
            call(**arguments)
        assert str(caught.value) == f"kn_gpu_scale_shift: {message}"
    with pytest.raises(GpuError, match=r"^kn_gpu_workspace_bytes: dtype must be"):
        library.workspace_bytes("float64", k)
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_CUDA_FAIL", "cuLaunchKernel")
        with pytest.raises(GpuError, match=r"The launch of apply_\w+ failed: CUDA_ERROR_LAUNCH_FA"):
            call()
    call()
    np.testing.assert_array_equal(y, x)


@pytest.mark.cuda
def test_without_a_driver(library):
    script = (
        "from benchmarks.gpu.library import Library; from benchmarks.gpu.cases import Geometry\n"
        "Library().scale_shift('float32', Geometry(1, 1, 1, 8, 1), *[None] * 4, 'none', None, None)"
    )
    environment = {n: v for n, v in os.environ.items() if n != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    wanted = "There is no CUDA driver: libcuda.so.1"
    if "libcuda.so.1" in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout:
        pytest.skip("this machine has a driver")
    assert wanted in done.stderr


@pytest.mark.cuda
def test_small_runs_every_kernel():
    """What the sanitizers look at is all there is."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.small"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, names = re.match(r"(\d+) kernels ran: (.*)", done.stdout).groups()
    assert len(names.split()) == int(count)
    wanted = {*re.findall(r"KERNEL\((\w+), kThreads", KERNELS)}
    for slices in ("", "SLICE_"):
        types = re.findall(rf"NORMS_{slices}KERNELS_OF\(KERNEL, (\w+), \w+, (\d)\)", KERNELS)
        begin = KERNELS.index(f"#define KERAS_NORMS_{slices}KERNELS_OF")
        body = KERNELS[begin : KERNELS.index("\n\n", begin)]
        steps = re.findall(r"KERNEL\((\w+)_##type", body)
        wanted |= {f"{step}_{dtype}x{width}" for step in steps for dtype, width in types}
    assert len(wanted) >= 64
    assert set(names.split()) == wanted


@pytest.mark.cuda
def test_the_op_in_tensorflow_is_not_looked_for_on_the_cpu(tmp_path):
    path = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks.gpu.tensorflow_check", "--json", str(path)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    sees, everything = json.loads(path.read_text())["rows"]
    assert (sees["name"], sees["outcome"]) == ("TensorFlow sees GPU", "FAILED")
    assert sees["detail"] == "LookupError: TensorFlow sees no GPU."
    assert everything["detail"] == "1 steps"


@pytest.mark.cuda
@pytest.mark.parametrize("item", range(0, 60, 7))
def test_kernels_pass_the_check(library, item):
    pytest.importorskip("torch")
    from benchmarks.gpu import check

    short = [i for i in check.small_items() if i.geometry.size < 10_000]
    row = check.check(library, short[item], "cpu", None)
    assert row["problems"] == []
    assert {out["function"] for out in row["outputs"]} == {*SIGNATURES}


@pytest.mark.cuda
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
@pytest.mark.parametrize("passes", [FORWARD, BACKWARD])
def test_columns_compute_the_same(library, case, passes):
    pytest.importorskip("torch")
    from benchmarks.gpu import columns

    given = columns.data(case, passes, 1, "cpu")
    ours, theirs = (
        columns.build(name, case, passes, given, library, lambda: None)[0]()
        for name in (cases.OURS, cases.EAGER)
    )
    theirs = (theirs,) if passes == FORWARD else theirs
    # PyTorch's parameters are of 16 bits here, its statistics of float32.
    tolerance = {"float32": 2e-5, "bfloat16": 3e-2, "float16": 4e-3}[case.dtype]
    compared = 0
    for got, want in zip(ours, theirs, strict=False):
        if got is None:
            continue
        want = want.movedim(1, -1) if case.layout == CHANNELS_LAST and want.dim() > 1 else want
        want = want.double().reshape(got.shape)
        bound = tolerance * max(1.0, float(want.abs().max()))
        assert float((got.double() - want).abs().max()) <= bound
        compared += 1
    assert compared >= (1 if passes == FORWARD else 2)


# The check itself, with PyTorch in place of the kernels -----------------------------------------


class Stand:
    """The six functions by the reference; `spoil(name, outputs)` may damage what they write."""

    commit = "none"

    def __init__(self, spoil=lambda name, outputs: None):
        self.spoil = spoil

    def read_once(self, yes):
        """It has one way of reading."""

    def workspace_bytes(self, dtype, k):
        return 64

    def normalize(self, dtype, k, x, gamma, beta, epsilon, subtract, name, y, mean, variance, *_):
        from benchmarks.gpu import reference

        xs, (g, b) = (
            x.double().view(*k),
            (p.double().view(1, 1, k.g, k.d, 1) for p in (gamma, beta)),
        )
        found = reference.moments(xs, k, subtract)
        z = reference.normalize(xs, g, b, *found, epsilon)
        wanted = reference.activate(name, z), *found
        self._put("normalize", (y, mean, variance), wanted)

    def normalize_grad(
        self, dtype, k, dy, x, gamma, beta, mean, variance, epsilon, subtract, name, *outputs
    ):
        from benchmarks.gpu import reference

        xs, g = x.double(), gamma.double()
        found = reference.moments(xs, k, subtract)
        z = reference.normalize(xs, g, beta.double(), *found, epsilon)
        dz = dy.double() * reference.slope(name, z)
        wanted = reference.normalize_grad(dz, xs, g, *found, epsilon, subtract)
        self._put("normalize_grad", outputs, wanted)

    def moments(self, dtype, k, x, subtract, mean, residual, variance, *_):
        from benchmarks.gpu import reference

        found = reference.moments(x.double(), k, subtract)
        mean.copy_(found[0])
        self._put("moments", (residual, variance), (found[0] - mean.double(), found[1]))

    def moments_grad(self, dtype, k, x, mean, residual, dmean, dvariance, dx, *_):
        from benchmarks.gpu import reference

        exact = mean.double() + residual.double()
        wanted = reference.moments_grad(x.double(), exact, dmean.double(), dvariance.double(), k)
        self._put("moments_grad", (dx,), (wanted,))

    def scale_shift(self, dtype, k, x, center, scale, shift, name, y, *_):
        from benchmarks.gpu import reference

        z = (x.double() - center.double()) * scale.double() + shift.double()
        self._put("scale_shift", (y,), (reference.activate(name, z),))

    def scale_shift_grad(self, dtype, k, dy, x, center, scale, shift, name, *outputs):
        from benchmarks.gpu import reference

        z = (x.double() - center.double()) * scale.double() + shift.double()
        dz = dy.double() * reference.slope(name, z)
        wanted = reference.scale_shift_grad(dz, x.double(), center.double(), scale.double())
        self._put("scale_shift_grad", outputs, wanted)

    def _put(self, name, outputs, wanted):
        for output, want in zip(outputs, wanted, strict=False):
            output.copy_(want.reshape(output.shape))
        self.spoil(name, outputs[: len(wanted)])


def item_of(dtype="float32", **changed):
    pytest.importorskip("torch")
    from benchmarks.gpu import check

    item = check.Item("test", Geometry(3, 5, 2, 7, 11), dtype, activation="silu")
    return dataclasses.replace(item, **changed)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("activation", ["none", "relu", "silu", "gelu"])
def test_torch_reference_passes_its_own_check(dtype, activation):
    item = item_of(dtype, activation=activation, subtract_mean=activation != "relu")
    from benchmarks.gpu import check

    row = check.check(Stand(), item, "cpu")
    assert row["problems"] == []
    assert len(row["outputs"]) == 3 + 3 + 3 + 1 + 1 + 3
    assert all(out["error"] <= out["limit"] for out in row["outputs"])


def test_torch_reference_is_pytorchs_gradient():
    """By autograd, through statistics and all."""
    item_of()
    import torch

    from benchmarks.gpu import reference

    k = Geometry(3, 5, 2, 7, 11)
    x = (3 + 2 * torch.randn(*k, dtype=torch.float64)).requires_grad_()
    gamma, beta = (
        torch.randn(1, 1, 2, 7, 1, dtype=torch.float64, requires_grad=True) for _ in "ab"
    )
    dy = torch.randn(*k, dtype=torch.float64)
    for activation in ("none", "relu", "silu", "gelu"):
        for subtract in (True, False):
            found = reference.moments(x, k, subtract)
            z = reference.normalize(x, gamma, beta, *found, 1e-3)
            y = reference.activate(activation, z)
            want = torch.autograd.grad(y, (x, gamma, beta), dy)
            with torch.no_grad():
                dz = dy * reference.slope(activation, z)
                got = reference.normalize_grad(dz, x, gamma, *found, 1e-3, subtract)
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g.reshape(w.shape), w)
    functions = torch.nn.functional
    torch.testing.assert_close(reference.activate("gelu", x), functions.gelu(x))
    torch.testing.assert_close(reference.activate("silu", x), functions.silu(x))


def spoiled(name, output, change):
    """Damages one output of one function."""

    def spoil(called, outputs):
        if called == name:
            change(outputs[output])

    return spoil


def shift_one(tensor):
    tensor.view(-1)[-1] += 0.5


def write_beside(tensor):
    tensor.as_strided((1,), (1,), tensor.storage_offset() + tensor.numel()).zero_()


class Alternate:
    """The last bit of an element changes with each call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, tensor):
        import torch

        self.calls += 1
        tensor.view(-1).view(torch.int32)[0] ^= self.calls % 2


@pytest.mark.parametrize(
    ("name", "output", "change", "problem"),
    [
        ("normalize", 0, shift_one, "normalize: y is off by"),
        ("normalize", 1, lambda t: t.add_(1e-4), "normalize: mean is off by"),
        ("normalize_grad", 1, lambda t: t.mul_(1 + 1e-4), "normalize_grad: dgamma is off by"),
        ("moments", 0, lambda t: t.add_(1e-4), "moments: residual is off by"),
        ("moments_grad", 0, lambda t: t.view(-1)[3].fill_(math.nan), "dx is off by nan"),
        ("scale_shift", 0, shift_one, "scale_shift: y is off by"),
        ("scale_shift_grad", 2, lambda t: t.zero_(), "scale_shift_grad: dshift is off by 1"),
        ("scale_shift_grad", 0, write_beside, "scale_shift_grad writes beside dx"),
        ("moments_grad", 0, Alternate(), "moments_grad: dx of the second call has other bits"),
    ],
)
def test_torch_check_finds_what_is_wrong(name, output, change, problem):
    item = item_of()
    from benchmarks.gpu import check

    row = check.check(Stand(spoiled(name, output, change)), item, "cpu")
    assert any(problem in found for found in row["problems"]), row["problems"]
    assert all(found.startswith(name) for found in row["problems"])


def test_torch_check_finds_changed_inputs():
    item = item_of()
    from benchmarks.gpu import check

    class Wrong(Stand):
        def scale_shift(self, dtype, k, x, *rest):
            super().scale_shift(dtype, k, x, *rest)
            x.view(-1)[0] += 1

    row = check.check(Wrong(), item, "cpu")
    assert "scale_shift changes its input x" in row["problems"]


def test_torch_wrong_kernel_makes_the_command_fail(tmp_path, monkeypatch, capsys):
    """A stage's rows reach the table, the file and the exit code."""
    item = item_of()
    from benchmarks.gpu import check

    spoil = None
    monkeypatch.setattr(check, "items", lambda quick: iter([item]))

    def in_this_process(command, timeout):
        rows = Path(command[command.index("--rows") + 1])
        library = Stand(spoil) if spoil else Stand()
        tasks = stage.tasks("check", True, library, "cpu", lambda: 0, None)
        lines = []
        stage.run(tasks, lines.append)
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0)

    whole = command.stage
    monkeypatch.setattr(command, "stage", lambda *a: whole(*a, run=in_this_process))
    path = tmp_path / "kept.json"
    arguments = ["--check", "--quick", "--json", str(path)]
    assert command.main(arguments) == 0
    assert "1 checks, 0 failed" in capsys.readouterr().out
    spoil = spoiled("normalize", 0, shift_one)
    assert command.main(arguments) == 1
    printed = capsys.readouterr().out
    assert f"FAILED: {item.title}: normalize: y is off by" in printed
    assert "1 checks, 1 failed" in printed
    assert results.read(path).failures[0]["problems"]


def test_a_run_that_cannot_start_leaves_the_kept_one(tmp_path, monkeypatch, capsys):
    """As where PyTorch or the library is missing: each stage's process ends at once."""
    kept = tmp_path / f"{time.strftime('%Y-%m-%d')}-gpu.json"
    kept.write_text("this morning's")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(
        command.sanitize, "sanitize", lambda tool, seconds: {"title": tool, "skipped": "-"}
    )
    whole = command.stage

    def ends(process, timeout):
        return subprocess.CompletedProcess(process, 1)

    monkeypatch.setattr(command, "stage", lambda *a: whole(*a, run=ends))
    assert command.main([]) == 1
    assert "nothing is kept" in capsys.readouterr().out
    assert kept.read_text() == "this morning's"


# Times, with a timer of its own ------------------------------------------------------------------


class FakeTimer:
    """Runs every call and gives times in turn."""

    l2_bytes = 1000
    no_graph = ""

    def __init__(self):
        self.calls = []

    scope = staticmethod(nullcontext)

    def capture(self, calls, *, cold):
        for call in calls:
            call()
        self.calls.append((len(calls), cold))
        number = len(self.calls)

        def run():
            return number * 1e-6

        run.no_graph = self.no_graph
        return run


class Recording(Stand):
    kernels = ("lanes_moments_float32x4", "merge_moments", "apply_float32x4")


def test_torch_measured_row():
    torch = pytest.importorskip("torch")
    from benchmarks.gpu import measure

    case = Case("group", (2, 3, 5, 8), CHANNELS_LAST, "float32", 2)
    timer = FakeTimer()

    class Broken(Recording):
        def normalize(self, *_):
            raise RuntimeError("no\nreason")

    names = measure.names(case, FORWARD)
    assert names == [cases.OURS, cases.EAGER, cases.CLONE]
    row = measure.measure(case, FORWARD, names, Broken(), timer, "cpu", lambda: 0)
    assert row["columns"]["ours"] == "RuntimeError: no"
    sets = math.ceil(4 * 1000 / (2 * case.bytes))
    assert row["sets"] == sets == 3
    assert timer.calls == [(3, True), (1, False)] * 2
    assert row["columns"]["torch"] == {"cold": [1e-6] * 2, "hot": [2e-6] * 2}
    assert json.loads(json.dumps(row)) == json.loads(json.dumps(row))
    timer.no_graph = "RuntimeError: not captured"
    row = measure.measure(case, FORWARD, [cases.CLONE], Broken(), timer, "cpu", lambda: 0)
    assert row["columns"]["clone"]["no_graph"] == timer.no_graph
    rows = Case("layer", (4, 8), cases.ROWS, "float32")
    assert cases.TRITON in measure.names(rows, FORWARD)
    assert cases.TRITON not in measure.names(rows, BACKWARD)
    batch = Case("batch", (2, 3, 5, 8), CHANNELS_LAST, "float32")
    assert measure.names(batch, BACKWARD) == [cases.OURS, cases.TWICE, cases.EAGER, cases.CLONE]
    data_ = [t for t in measure.columns.data(rows, BACKWARD, 1, "cpu") if torch.is_tensor(t)]
    assert all(t.dtype == torch.float32 for t in data_)


def test_torch_graph_timer(monkeypatch):
    """PyTorch's CUDA in name only: what is captured, kept, replayed and divided by."""
    torch = pytest.importorskip("torch")
    from benchmarks.gpu import timing

    log, clock = [], [0.0]

    class Graph:
        fails = False

        def capture_begin(self, capture_error_mode):
            log.append("begin")

        def capture_end(self):
            log.append("end")
            if self.fails:
                raise RuntimeError("the capture failed")

        def replay(self):
            log.append("replay")
            clock[0] += 24.0

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]

        def elapsed_time(self, other):
            return other.at - self.at

    for name, stand in {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": object,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
        "get_device_properties": lambda device: type("Properties", (), {"L2_cache_size": 7}),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand)
    timer = timing.GraphTimer(replays=5)
    assert timer.l2_bytes == 7

    class Tensor:
        def __del__(self):
            log.append("freed")

    def call(name):
        def function():
            log.append(name)
            return Tensor()

        return function

    with timer.scope():
        run = timer.capture([call("a"), call("b"), call("c")], cold=True)
        captured = log[log.index("begin") :]
        assert captured == ["begin", *"abc" * 3, "end"]  # at least 8 calls, nothing freed
        assert run() == pytest.approx(24.0 / 1e3 / 9)  # milliseconds of a replay of 9 calls
        assert log.count("replay") == 3 + 5
        assert run.no_graph == ""
        log.clear()
        run = timer.capture([call("a")], cold=False)
        captured = log[log.index("begin") : log.index("end")]
        assert captured.count("a") == 8
        assert captured.count("freed") == 8
        Graph.fails = True
        log.clear()
        run = timer.capture([call("a")], cold=True)
        assert run.no_graph == "RuntimeError: the capture failed"
        log.clear()
        run()
        assert "replay" not in log
        assert log.count("a") == 8 * (3 + 5)


TRITON = """
import torch
from benchmarks.gpu import triton_rows
for size in (1, 40, 2049):
    x, gamma, beta = 3 + 2 * torch.randn(3, size), torch.randn(size), torch.randn(size)
    for dtype in (torch.float32, torch.bfloat16):
        rows = x.to(dtype)
        got = triton_rows.forward(rows, gamma, beta, torch.empty_like(rows), 1e-3, False)
        want = torch.nn.functional.layer_norm(rows.float(), (size,), gamma, beta, 1e-3)
        torch.testing.assert_close(got, want.to(dtype), rtol=1e-2, atol=1e-4)
        got = triton_rows.forward(rows, gamma, beta, torch.empty_like(rows), 1e-3, True)
        want = torch.nn.functional.rms_norm(rows.float(), (size,), gamma, 1e-3)
        torch.testing.assert_close(got, want.to(dtype), rtol=1e-2, atol=1e-4)
try:
    triton_rows.forward(torch.empty(1, 65537), None, None, None, 1e-3, True)
except NotImplementedError as error:
    print(error)
"""


def test_torch_triton_rows_by_tritons_interpreter():
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", TRITON],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "The row is longer than a block of 65536.\n", done.stderr


def test_torch_columns_that_disagree_are_not_timed():
    pytest.importorskip("torch")
    from benchmarks.gpu import measure

    case, names = Case("layer", (4, 8), cases.ROWS, "float32"), [cases.OURS, cases.EAGER]
    for spoil, agrees in ((lambda *_: None, True), (spoiled("normalize", 0, shift_one), False)):
        library = Recording(spoil)
        library.kernels = ["rows_forward_float32x4"]
        row = measure.measure(case, FORWARD, names, library, FakeTimer(), "cpu", lambda: 0)
        found = row["columns"][cases.EAGER]
        assert isinstance(found, dict) == agrees
        assert agrees or found.startswith("ArithmeticError: its result differs from ours by 0.")
        assert row["bytes"] == row["own_bytes"] == 2 * case.bytes + 4 * (2 * 8 + 2 * 4)


def test_torch_what_is_read_once_is_timed_beside_two_reads():
    pytest.importorskip("torch")
    from benchmarks.gpu import measure

    class Switched(Stand):
        reads, once = (), True

        def read_once(self, yes):
            self.once = yes

        def normalize(self, *arguments):
            self.reads += (self.once,)
            super().normalize(*arguments)

    case = Case("batch", (2, 3, 5, 8), CHANNELS_LAST, "float32")
    for kernels, twice in ((Recording.kernels, False), (["slices_forward_float32x4"], True)):
        library = Switched()
        library.kernels = kernels
        names = measure.names(case, FORWARD)
        row = measure.measure(case, FORWARD, names, library, FakeTimer(), "cpu", lambda: 0)
        assert (cases.TWICE in row["columns"]) == twice
        assert (False in library.reads) == twice
        assert library.once


def timed(title, layer, layout, passes, ours, torch, *, own=None, floor=1000, **columns):
    columns = {"ours": ours, "torch": torch, **columns}
    return {
        "index": 0,
        "title": title,
        "case": {"layer": layer, "layout": layout, "dtype": "float32"},
        "passes": passes,
        "bytes": floor,
        "own_bytes": own or floor,
        "columns": {
            name: {"cold": [t, t], "hot": [t / 2, t / 2]} if isinstance(t, float) else t
            for name, t in columns.items()
        },
    }


def result():
    times = [
        timed("a", "layer", "rows", FORWARD, 1.0, 2.0, Triton=1.5),
        timed("b", "layer", "rows", FORWARD, 4.0, 1.0),
        timed("c", "batch", CHANNELS_FIRST, BACKWARD, 2.0, "Error: why", own=2000),
        timed("a", "layer", "rows", FORWARD, 1.0, "-", **{"torch.compile": 3.0}),
        {"index": 4, "title": "d", "skipped": "no time was left"},
        {"index": 5, "title": "e", "failed": "RuntimeError: it broke"},
    ]
    checks = [{"index": 0, "title": "bad", "failed": "GpuError: gone"}]
    tools = [{"title": "memcheck", "skipped": "not installed"}]
    return results.Result({"device": "a GPU", "copy_rate": 1000.0}, checks, tools, times)


def test_numbers_follow_from_the_times(tmp_path):
    found = result()
    a, b, c = found.rows
    assert (a.part(), b.part(), c.part(), c.part("own_bytes")) == (1.0, 0.25, 0.5, 1.0)
    assert (a.ratio("torch"), a.ratio("torch.compile"), a.ratio("Triton", "hot")) == (2, 3, 1.5)
    assert [row.slower for row in (a, b, c)] == [False, True, False]
    assert (a.reads, c.reads) == (results.ONE_READ, results.TWO_READS)
    forward, backward, one, two = (goal.reached(found.rows) for goal in results.GOALS)
    assert forward == (pytest.approx(0.5), 2)
    assert (backward, one, two) == ((None, 0), (None, 0), (pytest.approx(1.0), 1))
    assert found.failures == found.checks
    path = tmp_path / "kept" / "a-gpu.json"
    results.write(found, path)
    assert results.read(path) == found


def test_table_names_what_is_missing_and_ends_with_the_goals():
    lines = table.text(result()).splitlines()
    text = "\n".join(lines)
    assert "100 %" in text
    assert "no result: d: no time was left" in text
    assert "no result: e: RuntimeError: it broke" in text
    assert "no result: memcheck: not installed" in text
    assert "FAILED: bad: GpuError: gone" in text
    assert "without a time: torch: Error: why (1 rows)" in text
    assert "SLOWER than torch: b: 0.25" in text
    assert "goal: rows, forward >= 90%: 50 % in 2 rows, MISSED" in text
    assert "goal: two reads, of their own floor >= 90%: 100 % in 1 rows, reached" in text
    assert lines[-1] == ("0 checks, 1 failed; 3 rows timed, 1 slower than torch; 3 without result")


def test_floors_know_every_kernel():
    steps = re.findall(r"KERNEL\((\w+?)(?:_##type##x##width)?, k\w+,", KERNELS)
    assert {*steps} == {*floors.TENSORS}
    assert floors.step("gradient_rows_bfloat16x8") == "gradient_rows"
    case = Case("batch", (2, 3, 5, 512), CHANNELS_LAST, "float32")
    kernels = ["lanes_moments_float32x4", "merge_moments", "apply_float32x4"]
    least = floors.least_bytes(case, FORWARD)
    assert least == 2 * case.bytes + 4 * 4 * 512  # few rows: the parameters count
    assert floors.own_bytes(case, FORWARD, kernels) == least + case.bytes
    large = Case("rms", (8192, 4096), cases.ROWS, "bfloat16")
    assert floors.least_bytes(large, BACKWARD) == 3 * large.bytes
    with pytest.raises(KeyError):
        floors.tensors(["a_new_kernel_float32x4"])


def test_geometries_are_the_layers():
    assert {c.geometry.size for c in cases.all_cases()} == {
        math.prod(c.shape) for c in cases.all_cases()
    }
    first, last = CHANNELS_FIRST, CHANNELS_LAST
    for case, want in (
        (Case("rms", (6, 40), cases.ROWS, "float32"), (6, 1, 1, 40, 1)),
        (Case("batch", (2, 3, 5, 12), last, "float32"), (1, 30, 12, 1, 1)),
        (Case("batch", (2, 12, 3, 5), first, "float32"), (1, 2, 12, 1, 15)),
        (Case("instance", (2, 3, 5, 12), last, "float32"), (2, 15, 12, 1, 1)),
        (Case("group", (2, 12, 3, 5), first, "float32", 4), (2, 1, 4, 3, 15)),
    ):
        assert case.geometry == want
    titles = [case.name for case in cases.all_cases()]
    assert len(set(titles)) == len(titles)


# Stages ------------------------------------------------------------------------------------------


def test_a_failing_task_is_a_row_and_a_lost_device_ends_the_process():
    rows, lost = [], []

    def fail():
        raise ValueError("no")

    def lose():
        lost.append(True)
        return {"found": 1}

    def alive():
        if lost:
            raise RuntimeError("CUDA error")

    tasks = [("a", fail), ("b", dict), ("c", lose), ("d", dict)]
    assert stage.run(tasks, rows.append, alive=alive) == stage.LOST
    assert [row["title"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["failed"] == "ValueError: no"
    assert rows[2]["failed"] == "RuntimeError: CUDA error"
    rows.clear()
    assert stage.run(tasks, rows.append, first=3, until=-1.0) == 0
    assert rows == [{"index": 3, "title": "d", "skipped": "no time was left"}]


def test_a_stage_goes_on_behind_what_ended_it():
    """Killed by a signal at item 1, lost at item 3, then through; a cut line is left out."""
    starts = [
        (-11, [{"machine": {"device": "x"}}, {"index": 0, "title": "a"}], '{"ind'),
        (stage.LOST, [{"index": 2, "title": "c"}, {"index": 3, "title": "d"}], ""),
        (0, [{"copy_rate": 2.0}, {"index": 4, "title": "e"}], ""),
    ]
    firsts = []

    def run(command, timeout):
        code, lines, rest = starts[len(firsts)]
        firsts.append(int(command[command.index("--first") + 1]))
        path = Path(command[command.index("--rows") + 1])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + rest)
        return subprocess.CompletedProcess(command, code)

    machine = {}
    rows = command.stage("time", False, 100.0, machine, run=run)
    assert firsts == [0, 2, 4]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[1]["failed"] == "the process ended with code -11"
    assert machine == {"device": "x", "copy_rate": 2.0}


def test_a_stage_that_cannot_begin_is_given_up():
    def run(command, timeout):
        return subprocess.CompletedProcess(command, 1)

    rows = command.stage("check", True, 100.0, {}, run=run)
    assert rows[0]["failed"] == "the process ended with code 1"
    assert rows[1]["skipped"] == "the stage was given up"
    assert len(rows) == 2


def test_sanitizers_verdict(monkeypatch):
    clean = "58 kernels ran: a b\n========= ERROR SUMMARY: 0 errors\n"
    assert sanitize.verdict(0, clean) == {"passed": "ERROR SUMMARY: 0 errors; 58 kernels ran"}
    hazards = "58 kernels ran: a\n========= RACECHECK SUMMARY: {} hazards displayed (0 errors)\n"
    assert "passed" in sanitize.verdict(0, hazards.format(0))
    assert "failed" in sanitize.verdict(0, hazards.format(10))
    found = "========= Invalid __global__ read\n========= ERROR SUMMARY: 1 error\n"
    assert "Invalid __global__ read" in sanitize.verdict(77, found)["failed"]
    assert "failed" in sanitize.verdict(0, "")  # nothing ran
    refused = "========= Error: Device not supported. Please refer to the documentation"
    assert sanitize.verdict(1, refused)["skipped"].startswith("Error: Device not supported")
    monkeypatch.setattr(sanitize.shutil, "which", lambda *a, **k: None)
    row = sanitize.sanitize("memcheck", 1.0)
    assert row["skipped"] == "compute-sanitizer is not installed"


def test_sanitizers_command(monkeypatch):
    monkeypatch.setattr(sanitize.shutil, "which", lambda *a, **k: "/bin/compute-sanitizer")
    commands = []

    def run(command, *, capture_output, text, timeout):
        commands.append(command)
        if timeout < 1:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, sanitize.FOUND, "Invalid write\n", "")

    row = sanitize.sanitize("initcheck", 9.0, run)
    assert row["failed"] == f"exit code {sanitize.FOUND}\nInvalid write"
    tool = ["/bin/compute-sanitizer", "--tool", "initcheck", "--error-exitcode", "77"]
    assert commands == [[*tool, sys.executable, "-m", "benchmarks.gpu.small"]]
    assert sanitize.sanitize("memcheck", 0.5, run)["skipped"] == "it did not end in 0 s"


def test_small_encodes_bfloat16_by_its_bits():
    values = np.array([1.0, -2.5, 3.140625], "float32")
    assert small.encoded(values, "bfloat16").dtype == np.uint16
    np.testing.assert_array_equal(
        small.decoded(small.encoded(values, "bfloat16"), "bfloat16"), values
    )


def test_missing_library_names_its_cure(tmp_path):
    with pytest.raises(GpuError, match="`make gpu-harness` builds it"):
        Library(tmp_path / "none.so")
