"""What norms, wrappers and whole networks cost in time, bytes and operations."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import keras
import numpy as np

import keras_norms as kn
from benchmarks.mobile import files, latency, models
from benchmarks.mobile.results import (
    ANY,
    APPLICATIONS,
    CPU,
    CUSTOM,
    KERAS,
    KERAS_WITHOUT,
    NORMS,
    WITHOUT,
    WRAPPERS,
    File,
    Timed,
)
from keras_norms.tflite.contents import contents

PASSES = 3  # over all rows, with files opened anew: the quietest counts
VISITS = {NORMS: 20, WRAPPERS: 20, APPLICATIONS: 5}  # of a file in a pass
NETWORKS = ("MobileNetV2", "EfficientNetB0")
SPECTRAL = keras.layers.SpectralNormalization
WRAPPED = {
    "WeightNormalization(Conv2D)": (kn.WeightNormalization, False),
    "SpectralNormalization(Conv2D)": (SPECTRAL, True),
    "WeightStandardization(Conv2D)": (kn.WeightStandardization, False),
}


@dataclass
class Written:
    """A row in the making: its files' bytes, what is known of them, and the times so far."""

    row: Timed
    bytes: dict[str, bytes] = field(default_factory=dict)
    times: dict[str, list[int]] = field(default_factory=dict)

    def add(self, column: str, make: Callable) -> None:
        try:
            content, report = make()
        except Exception as error:  # a file that cannot be written is reported, others go on
            self.row.files[column] = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        file = File(len(content), contents(content).ops)
        if report is not None:
            folded = sum(norm.form == "folded" for norm in report.norms)
            file = dataclasses.replace(file, norms=len(report.norms), folded=folded)
        self.row.files[column], self.bytes[column] = file, content

    def measure(self) -> None:
        opened = {
            column: latency.Visited(content, with_op=column == CUSTOM)
            for column, content in self.bytes.items()
        }
        for column, times in latency.visits(opened, VISITS[self.row.table]).items():
            self.times.setdefault(column, []).extend(times)

    def done(self) -> Timed:
        for column, times in self.times.items():
            file = self.row.files[column]
            self.row.files[column] = dataclasses.replace(file, latency=latency.latency(times))
        return self.row


def measure(say: Callable[[str], None]) -> list[Timed]:
    written = []
    for one in itertools.chain(norms(), wrappers(), applications()):
        say(f"written: {one.row.name}, {one.row.net}")
        written.append(one)
    for k in range(PASSES):
        say(f"timing, pass {k + 1} of {PASSES}")
        for one in written:
            one.measure()
    return [one.done() for one in written]


def norms() -> Iterator[Written]:
    bases: dict[tuple, dict[str, Callable]] = {}
    for norm in models.NORMS:
        one = Written(Timed(NORMS, norm.name, norm.net, norm.in_keras, {}))
        model = models.sandwich(norm)
        if (norm.net, norm.relu) not in bases:
            bases[norm.net, norm.relu] = plain(models.sandwich(norm, without=True))
        for column, make in bases[norm.net, norm.relu].items():
            one.add(column, make)
        one.add(KERAS, lambda m=model: (files.keras_export(m), None))
        one.add(CPU, lambda m=model: ours(m, target="cpu"))
        one.add(ANY, lambda m=model: ours(m))
        one.add(CUSTOM, lambda m=model: ours(m, custom_op=True))
        yield one


def wrappers() -> Iterator[Written]:
    base = plain(models.wrapped(None))
    for name, (make, in_keras) in WRAPPED.items():
        one = Written(Timed(WRAPPERS, name, "conv", in_keras, {}))
        model = models.wrapped(make)
        for column, made in base.items():
            one.add(column, made)
        one.add(KERAS, lambda m=model: (files.keras_export(m), None))
        one.add(ANY, lambda m=model: ours(m))
        yield one


def plain(model: keras.Model) -> dict[str, Callable]:
    """A network that norms are compared with; it is written once."""
    return {
        KERAS_WITHOUT: functools.cache(lambda: (files.keras_export(model), None)),
        WITHOUT: functools.cache(lambda: ours(model)),
    }


def applications() -> Iterator[Written]:
    for name in NETWORKS:
        model = models.application(name)
        one = Written(
            Timed(APPLICATIONS, name, "x".join(map(str, model.input_shape[1:])), True, {})
        )
        one.add(KERAS, lambda m=model: (files.keras_export(m), None))
        one.add(ANY, lambda m=model: ours(m))  # with nothing but folded norms, as for "cpu"
        yield one


def ours(model: keras.Model, **options):
    """One sample is enough to see that a file is right; any error is measured elsewhere."""
    shape = (1, *model.input_shape[1:])
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    return files.ours(model, data=x, tolerance=1e-3, **options)
