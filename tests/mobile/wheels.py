"""LiteRT's wheel and what it imports, for the Python of Debian's packages, of any architecture."""

import os
import sys
from pathlib import Path

from .cache import command, made
from .debian import PYTHON

PINS = Path(__file__).resolve().parents[2] / "requirements.txt"


def litert(machine: str) -> Path:
    """A folder for `sys.path`, in the versions that requirements.txt pins.

    Args:
        machine: "x86_64" or "aarch64".
    """

    def make(folder: Path, _: Path) -> None:
        words = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary", ":all:"]
        for glibc in "manylinux2014", "manylinux_2_27", "manylinux_2_28":
            words += ["--platform", f"{glibc}_{machine}"]
        command(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"),
            *("--constraint", PINS, "--target", folder, *words, "ai-edge-litert"),
            env={**os.environ, "PIP_ROOT_USER_ACTION": "ignore"},
        )

    return made(f"litert-{machine}", [machine, PINS.read_text()], make)
