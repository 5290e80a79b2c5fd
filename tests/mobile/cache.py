"""Folders under build/mobile that are made once, whole or not at all."""

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "build" / "mobile"


class SetUpFailed(Exception):
    """Something could not be fetched or unpacked; the message says what was tried."""


def made(name: str, recipe: Any, make: Callable[[Path, Path], None]) -> Path:
    """The folder that `make` fills, which is done only if the recipe has no folder yet.

    Args:
        recipe: of JSON's types, all that decides what is in the folder. The code of `make`'s
            module and the place of the folder, which may stand in its files, count as well.
        make: is given an empty folder to fill, and the path it will have.
    """
    source = inspect.getsource(sys.modules[make.__module__])
    key = hashlib.sha256(json.dumps([recipe, source, str(FOLDER)]).encode()).hexdigest()[:12]
    folder = FOLDER / f"{name}-{key}"
    # Of this process alone: what a killed set-up had started may still write into its own.
    partial = FOLDER / f"{name}-{key}.{os.getpid()}.part"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for left in FOLDER.glob(f"{name}-{key}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
            partial.mkdir()
            make(partial, folder)
            partial.rename(folder)
    return folder


def command(*words: Any, seconds: float = 600, env: dict[str, str] | None = None) -> None:
    """Runs a step of a set-up.

    Raises: SetUpFailed, with what it wrote.
    """
    words = [str(word) for word in words]
    try:
        subprocess.run(
            words,
            check=True,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.CalledProcessError as error:
        raise SetUpFailed(f"{' '.join(words)}\n{error.output.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetUpFailed(f"{' '.join(words)}\n{error}") from error
