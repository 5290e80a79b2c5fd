"""Names the machine and the versions that numbers belong to."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import date
from pathlib import Path

PACKAGES = ("keras-norms", "keras", "tensorflow", "tensorflow-cpu", "numpy")


def describe(threads: int) -> dict:
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "load": [load()],
    }


def load() -> float:
    """Processes that ran or waited over the last minute; this benchmark adds its own threads."""
    return round(os.getloadavg()[0], 2)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
