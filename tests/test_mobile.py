"""What the converter wrote, run by the runtimes of phones and browsers, beside Keras.

`tests/mobile/` has the runtimes. One that cannot be had here is skipped, and its reason stands at
the end of the run; KERAS_NORMS_REQUIRE_MOBILE=1 makes that a failure.
"""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
import rows
from mobile import agreement, runtimes
from mobile.gpu import refusal
from mobile.job import Failure, Job
from test_tflite import network, randomized

import keras_norms as kn
from keras_norms.tflite.signature import signature

pytestmark = pytest.mark.mobile

# Of the largest output: the converter's own tolerance. Sums in another order round differently, by
# 4e-6 in the worst of these models, an unrolled LSTM on the GPU.
TOLERANCE = 1e-5
# float16 has 11 bits, 6 dB each; an unrolled GRU is at 46 dB where nothing overflows, others are
# above 50.
SQNR = 45.0
DEVIATIONS = (0.01, 1, 100, 5000)  # of inputs: squares below float16's normal range, and above it
SAMPLES = 4

# What the GPU delegate does not do right, by model: the SQNR in dB by the inputs' deviation, for
# "fp32" and for all of a model the reason.
GPU_FAILS: dict[str, object] = {
    "LayerNormGRUCell": {5000: 42.9},  # what is rounded in one step of seven goes into the next
}


def convolutions():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((13, 11, 3)),
            layers.Conv2D(6, 3, use_bias=False),
            kn.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            kn.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def of_row(row):
    layer = rows.make(row)
    if row.form == "cell":
        layer.unroll = True  # else it is a WHILE
    return rows.model_of(row, layer)


MODELS = {"network": network, "convolutions": convolutions}
MODELS |= {row.name: lambda row=row: of_row(row) for row in rows.CATALOG}


@dataclass(frozen=True)
class Case:
    """A model on a runtime.

    Attributes:
        model: a key of MODELS.
        runtime: a key of RUNTIMES.
        options: of the runtime.
        mean, deviation: of the inputs. No deviation: the file is compiled, not run.
    """

    model: str
    runtime: str
    options: tuple[tuple[str, object], ...] = ()
    mean: float = 0.5
    deviation: float | None = 2.0


def case(model, runtime, mean=0.5, deviation=2.0, **options):
    return Case(model, runtime, tuple(options.items()), mean, deviation)


def on_gpu(model, case, what, name):
    """A parameter, expected to fail where the table says that it does.

    Args:
        what: the table's key, None for what only the refused models fail at.
    """
    known = GPU_FAILS.get(model, {})
    reason = known if isinstance(known, str) else known.get(what)
    marks = []
    if reason is not None:
        reason = reason if isinstance(reason, str) else f"{reason} dB"
        failures = AssertionError, Failure
        marks.append(pytest.mark.xfail(reason=reason, strict=True, raises=failures))
    return pytest.param(case, id=name, marks=marks)


class Models:
    """Models, their files and what Keras makes of data; each is made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.models, self.files, self.wanted = {}, {}, {}

    def model(self, name):
        if name not in self.models:
            keras.utils.set_random_seed(zlib.crc32(name.encode()))
            self.models[name] = randomized(MODELS[name]())
        return self.models[name]

    def file(self, case) -> Path:
        target = {"target": "gpu"} if case.runtime == "gpu" else {}
        key = case.model, *target.values()
        if key not in self.files:
            path = self.folder / f"{'-'.join(key)}.tflite"
            kn.tflite.convert(self.model(case.model), path, **target)
            self.files[key] = path
        return self.files[key]

    def inputs(self, case) -> dict[str, np.ndarray]:
        given = signature(self.model(case.model), batch_size=1)
        draw = np.random.default_rng(zlib.crc32(f"{case.model} {case.deviation}".encode()))
        shapes = {one.name: (SAMPLES, *one.shape[1:]) for one in given.inputs}
        # A condition is a condition: what it is multiplied with is normalized.
        deviations = [case.deviation, *[min(case.deviation, 1.0)] * (len(shapes) - 1)]
        if case.model == "ResidualNormalization":
            deviations = [case.deviation] * 2
        return {
            name: draw.normal(case.mean, deviation, shape).astype("float32")
            for (name, shape), deviation in zip(shapes.items(), deviations, strict=True)
        }

    def job(self, case) -> Job:
        inputs = {} if case.deviation is None else self.inputs(case)
        return Job(self.file(case), inputs, dict(case.options))

    def want(self, case) -> np.ndarray:
        key = case.model, case.mean, case.deviation
        if key not in self.wanted:
            model = self.model(case.model)
            packed = signature(model, batch_size=1).pack(list(self.inputs(case).values()))
            self.wanted[key] = keras.ops.convert_to_numpy(model(packed, training=False))
        return self.wanted[key]


class Outcomes:
    """Of all the cases that were selected: a runtime is started once, when the first is asked."""

    def __init__(self, models: Models, cases: list[Case]):
        self.models, self.cases = models, cases
        self.found, self.reasons = {}, {}

    def __call__(self, case):
        """What the runtime made of the case; skips where there is none.

        Raises: the Failure, if it is one.
        """
        if case.runtime not in self.reasons:
            self.reasons[case.runtime] = runtimes.why_not(case.runtime)
            if self.reasons[case.runtime] is None:
                cases = list(dict.fromkeys(c for c in self.cases if c.runtime == case.runtime))
                jobs = [self.models.job(one) for one in cases]
                done = runtimes.RUNTIMES[case.runtime].outcomes(jobs)
                self.found.update(zip(cases, done, strict=True))
        if reason := self.reasons[case.runtime]:
            missing(f"{case.runtime}: {reason}")
        if isinstance(self.found[case], Failure):
            raise self.found[case]
        return self.found[case]

    def output(self, case) -> np.ndarray:
        (got,) = self(case).values()
        return got


def missing(reason):
    if os.environ.get("KERAS_NORMS_REQUIRE_MOBILE", "0") not in ("", "0"):
        pytest.fail(f"A mobile runtime is required and missing: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    cases = []
    for item in request.session.items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        cases += [given["case"]] if "case" in given else given.get("cases", ())
    return Outcomes(Models(tmp_path_factory.mktemp("mobile")), cases)


# ---- float32 ----------------------------------------------------------------------------------

FLOAT32 = {
    "native-xnnpack-1": ("native", {"threads": 1}),
    "native-xnnpack-2": ("native", {"threads": 2}),
    "native-builtin-1": ("native", {"xnnpack": False, "threads": 1}),
    "native-builtin-2": ("native", {"xnnpack": False, "threads": 2}),
    "native-tensorflow": ("native", {"interpreter": "tensorflow"}),
    "aarch64-xnnpack": ("aarch64", {}),
    "aarch64-builtin": ("aarch64", {"xnnpack": False}),
    "browser": ("browser", {}),
}


@pytest.mark.parametrize(
    "case",
    [
        *(
            pytest.param(case(model, runtime, **options), id=f"{name}-{model}")
            for name, (runtime, options) in FLOAT32.items()
            for model in MODELS
        ),
        *(
            on_gpu(model, case(model, "gpu", precision="fp32"), "fp32", f"gpu-{model}")
            for model in MODELS
        ),
    ],
)
def test_same_as_keras(case, outcomes):
    got = outcomes.output(case)
    error = agreement.relative_error(outcomes.models.want(case), got)
    assert error <= TOLERANCE, f"off by {error:.3g} of the largest output"


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param([case(model, "native", threads=n) for n in (1, 2)], id=f"native-{model}")
        for model in MODELS
    ],
)
def test_same_bits_on_any_number_of_threads(cases, outcomes):
    one, two = map(outcomes.output, cases)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("cases", [[case("convolutions", name) for name in ("native", "aarch64")]])
def test_same_bits_on_aarch64(cases, outcomes):
    """XNNPACK's convolutions and products add up in one order, with fused multiply-adds."""
    native, aarch64 = map(outcomes.output, cases)
    np.testing.assert_array_equal(native, aarch64)


# ---- float16 on the GPU -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [on_gpu(m, case(m, "gpu", deviation=None, precision="fp16"), None, m) for m in MODELS]
)
def test_the_gpu_takes_the_whole_graph(case, outcomes):
    try:
        outcomes(case)
    except Failure as failure:
        raise AssertionError(refusal(failure)) from failure


@pytest.mark.parametrize(
    "case",
    [
        on_gpu(model, case(model, "gpu", 0, deviation), deviation, f"{deviation:g}-{model}")
        for deviation in DEVIATIONS
        for model in MODELS
    ],
)
def test_half_precision_on_the_gpu(case, outcomes):
    got = outcomes.output(case)
    found = agreement.sqnr(outcomes.models.want(case), got)
    assert found >= SQNR, f"{found:.1f} dB"


def test_the_table_names_models():
    assert set(GPU_FAILS) <= set(MODELS)
