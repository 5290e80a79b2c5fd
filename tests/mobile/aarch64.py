"""LiteRT's aarch64 wheel, in Debian's Python for aarch64, under qemu. Its times mean nothing."""

from pathlib import Path

import numpy as np

from . import debian, process, qemu, wheels
from .job import Job, Outcome, results, with_options

OPTIONS = {"interpreter": ("litert",), "xnnpack": (True, False), "threads": (1, 2)}


def available() -> str | None:
    return debian.available()


def set_up() -> None:
    _parts()


def _parts() -> tuple[Path, Path, Path]:
    python = debian.root("aarch64", "arm64", f"python{debian.PYTHON}", "libstdc++6")
    return qemu.program(), python, wheels.litert("aarch64")


def outcomes(jobs: list[Job], seconds: float = 600) -> list[Outcome]:
    emulator, root, site = _parts()
    return process.outcomes(
        with_options(jobs, OPTIONS),
        "interpreter.py",
        python=[emulator, "-L", root, root / f"usr/bin/python{debian.PYTHON}"],
        env={
            "PYTHONHOME": str(root / "usr"),
            "PYTHONPATH": str(site),
            "LD_LIBRARY_PATH": "/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu",
        },
        seconds=seconds,
    )


def run(jobs: list[Job], seconds: float = 600) -> list[dict[str, np.ndarray]]:
    return results(outcomes(jobs, seconds))
