"""One process of a runtime's Python for many jobs, and a new one only after it has died."""

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .job import Failure, Job, Outcome
from .workers.exchange import MARK

WORKERS = Path(__file__).resolve().parent / "workers"
LINES = 40  # of stderr, that a message ends with


def outcomes(
    jobs: list[Job],
    worker: str,
    *,
    python: list[Any],
    env: dict[str, str],
    seconds: float,
) -> list[Outcome]:
    """What each job gave. A job at which the process dies fails, and the ones after it are done.

    Args:
        worker: a script of `workers/`.
        python: the words that start the runtime's Python.
        env: its whole environment.
        seconds: that all jobs may take together.
    Raises: Failure, if the process ends before it has begun with a job.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _give(jobs, folder)
        found: list[Outcome] = []
        end = time.monotonic() + seconds
        while len(found) < len(jobs):
            words = [*python, WORKERS / worker, folder, len(found)]
            status, stderr = _start(words, env, folder, end)
            begun = _sections(stderr)
            if not begun:
                raise Failure(f"{worker} {_ending(status)} before its first job.\n{_tail(stderr)}")
            while len(found) < len(jobs) and (folder / f"{len(found)}.json").exists():
                found.append(_taken(jobs, folder, len(found), begun))
            if status is None:
                while len(found) < len(jobs):
                    at = f"All jobs together took longer than {seconds:g} s"
                    found.append(_failure(jobs[len(found)], at, begun.get(len(found), "")))
            elif len(found) < len(jobs):
                k = len(found)
                found.append(_failure(jobs[k], f"The process {_ending(status)}", begun.get(k, "")))
        return found


def _give(jobs: list[Job], folder: Path) -> None:
    given = []
    for k, job in enumerate(jobs):
        np.savez(folder / f"{k}.in.npz", *job.inputs.values())
        path = str(Path(job.path).resolve())
        given.append({"path": path, "names": list(job.inputs), "options": dict(job.options)})
    (folder / "jobs.json").write_text(json.dumps(given))


def _start(words: list[Any], env: dict[str, str], folder: Path, end: float):
    """The exit status, None if it had to be ended, and what was written to stderr."""
    with open(folder / "stderr", "w+b") as stderr:
        process = subprocess.Popen(
            [str(word) for word in words],
            env={**env, "HOME": str(folder), "TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            status = process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        stderr.seek(0)
        return status, stderr.read().decode(errors="replace")


def _taken(jobs: list[Job], folder: Path, k: int, begun: dict[int, str]) -> Outcome:
    answer = json.loads((folder / f"{k}.json").read_text())
    if answer["error"]:
        return _failure(jobs[k], answer["error"], begun.get(k, ""))
    with np.load(folder / f"{k}.out.npz") as arrays:
        return {name: arrays[f"arr_{i}"] for i, name in enumerate(answer["names"])}


def _failure(job: Job, what: str, stderr: str) -> Failure:
    return Failure(f"{job.path} with {dict(job.options)}: {what}\n{_tail(stderr)}")


def _sections(stderr: str) -> dict[int, str]:
    """What was written while each of the jobs was done."""
    found = {}
    for section in ("\n" + stderr).split(f"\n{MARK}")[1:]:
        number, _, text = section.partition("\n")
        found[int(number)] = text
    return found


def _tail(stderr: str) -> str:
    return "\n".join(stderr.strip().splitlines()[-LINES:])


def _ending(status: int | None) -> str:
    if status is None:
        return "took too long"
    if status < 0:
        return f"died of {signal.Signals(-status).name}"
    return f"ended with {status}"
