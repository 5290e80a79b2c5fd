"""LiteRT and TensorFlow's interpreter of this machine, in this Python."""

import importlib.util
import os
import sys

import numpy as np

from . import process
from .job import Job, Outcome, results, with_options

OPTIONS = {"interpreter": ("litert", "tensorflow"), "xnnpack": (True, False), "threads": (1, 2, 4)}


def available() -> str | None:
    for name in "ai_edge_litert", "tensorflow":
        if importlib.util.find_spec(name) is None:
            return f"{name} is missing: make test installs it"
    return None


def set_up() -> None:
    """Nothing: requirements.txt has it."""


def outcomes(jobs: list[Job], seconds: float = 300) -> list[Outcome]:
    return process.outcomes(
        with_options(jobs, OPTIONS),
        "interpreter.py",
        python=[sys.executable],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        seconds=seconds,
    )


def run(jobs: list[Job], seconds: float = 300) -> list[dict[str, np.ndarray]]:
    return results(outcomes(jobs, seconds))
