"""Names the machine and the versions that numbers belong to."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import date
from pathlib import Path

PACKAGES = ("keras-norms", "keras", "tensorflow", "tensorflow-cpu", "numpy")

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe(threads: int) -> dict:
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "cache": last_level_cache(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "load": [load()],
    }


def load() -> float:
    """Processes that ran or waited over the last minute; this benchmark adds its own threads."""
    return round(os.getloadavg()[0], 2)


def last_level_cache(folder: Path = CACHES) -> int | None:
    """Bytes of the cache next to memory, as Linux shows it to this machine; None where it does not.

    C's sysconf is not asked: on virtual machines it was seen to count caches that others use.
    """
    found = [
        (int((cache / "level").read_text()), (cache / "size").read_text().strip())
        for cache in folder.glob("index*")
        if (cache / "size").exists()
    ]
    if not found:
        return None
    size = max(found)[1]  # "32768K"
    return int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)


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
