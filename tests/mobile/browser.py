"""LiteRT.js in headless Chromium, on a page that this machine serves to itself."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from . import chromium, debian, npm
from .job import Job, Outcome, results, with_options
from .page import Page

OPTIONS = {"accelerator": ("wasm",)}
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),  # root has no sandbox; the page is ours
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def available() -> str | None:
    return debian.available()


def set_up() -> None:
    chromium.root()
    npm.litert_js()


def outcomes(jobs: list[Job], seconds: float = 300) -> list[Outcome]:
    """A job that fails is followed by a reload of the page, and the ones after it are done."""
    program, environment = chromium.program()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        Page(with_options(jobs, OPTIONS), npm.litert_js()) as page,
        open(Path(profile) / "stderr", "w+b") as stderr,
    ):
        process = subprocess.Popen(
            [
                *(program, *FLAGS, "--enable-logging=stderr"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}", page.address),
            ],
            env={**environment, "HOME": profile},
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
