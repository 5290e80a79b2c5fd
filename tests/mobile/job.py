"""What a runtime is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """A file to run on samples.

    Attributes:
        path: of a `.tflite` file.
        inputs: `(samples, ...)` by the signature's names, in the file's types. The number of
            samples is a multiple of the file's batch size.
        options: of the runtime, those that are not as its `OPTIONS`.
    """

    path: Path
    inputs: Mapping[str, np.ndarray]
    options: Mapping[str, Any] = field(default_factory=dict)


class Failure(Exception):
    """A runtime failed at a job. The message ends with what the runtime wrote to stderr."""


Outcome = dict[str, np.ndarray] | Failure


def results(outcomes: list[Outcome]) -> list[dict[str, np.ndarray]]:
    """The outcomes, all of which are to be outputs by name.

    Raises: the first Failure.
    """
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise outcome
    return outcomes


def with_options(jobs: list[Job], defaults: Mapping[str, tuple]) -> list[Job]:
    """The jobs with every option given.

    Args:
        defaults: the values that an option may have by its name, the default first.
    """
    for job in jobs:
        for name, value in job.options.items():
            if value not in defaults.get(name, ()):
                raise ValueError(f"Options are among {defaults}. Received: {name}={value!r}")
    first = {name: values[0] for name, values in defaults.items()}
    return [Job(Path(job.path), job.inputs, {**first, **job.options}) for job in jobs]
