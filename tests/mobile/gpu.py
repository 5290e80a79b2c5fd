"""LiteRT's GPU delegate (ML Drift on WebGPU), on lavapipe, Mesa's Vulkan for the CPU.

The kernels are those of a phone's GPU, in float16 unless float32 is asked for; the driver is not.
Debian 12's Mesa lacks what they need, so Debian 13's runs, with its C library and its Python.
"""

import re
from pathlib import Path

import numpy as np

from . import debian, process, wheels
from .job import Failure, Job, Outcome, results, with_options

OPTIONS = {"precision": ("fp16", "fp32")}


def available() -> str | None:
    return debian.available()


def set_up() -> None:
    _parts()


def _parts() -> tuple[Path, Path]:
    packages = f"python{debian.PYTHON}", "libstdc++6", "libvulkan1", "mesa-vulkan-drivers"
    return debian.root("gpu", "amd64", *packages), wheels.litert("x86_64")


def outcomes(jobs: list[Job], seconds: float = 300) -> list[Outcome]:
    """A file of which not all is accepted fails."""
    root, site = _parts()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    loader = [root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries]
    return process.outcomes(
        with_options(jobs, OPTIONS),
        "compiled.py",
        python=[*loader, root / f"usr/bin/python{debian.PYTHON}"],
        env={
            "PYTHONHOME": str(root / "usr"),
            "PYTHONPATH": str(site),
            "VK_ICD_FILENAMES": str(root / "usr/share/vulkan/icd.d/lvp_icd.json"),
        },
        seconds=seconds,
    )


def run(jobs: list[Job], seconds: float = 300) -> list[dict[str, np.ndarray]]:
    return results(outcomes(jobs, seconds))


def acceptances(paths: list[Path], **options: str) -> list[str | None]:
    """For each file, why the delegate does not take the whole of it; None: it does."""
    answers = outcomes([Job(path, {}, options) for path in paths])
    return [refusal(a) if isinstance(a, Failure) else None for a in answers]


def accepts(path: Path, **options: str) -> str | None:
    return acceptances([path], **options)[0]


def refusal(failure: Failure) -> str:
    """The delegate's own reason, where it gave one; else all that the failure says."""
    message = str(failure)
    pattern = (
        r"operations are not supported by GPU delegate:\n(.*?)\n(?:\d+|No) operations will run"
    )
    found = re.search(pattern, message, re.DOTALL)
    return found[1].strip() if found else message
