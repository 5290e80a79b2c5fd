"""Peers in processes of their own: their threads and allocators stay out of TensorFlow's.

Such a process may have another interpreter, with other packages: it imports `cases`, `timing` and
the module of its columns, and needs Python 3.10 or newer.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Collection
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.timing import sample


class Worker:
    """Starts the process. `why_not` is a line if the module cannot be imported there.

    Args:
        name: of the peer, whose columns are in the module `{name}_columns` of this package. It has
            `NAMES`; `set_up(threads)`, which returns the peer's version; `data(case)` and
            `column(name, case, passes, x, dy)`, as in `tf_columns`.
        threads: for each column.
        python: the interpreter.
        families: of the cases that it is asked for; None: all.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        python: str | Path = sys.executable,
        families: Collection[str] | None = None,
    ):
        self.name, self.families = name, families
        self.version, self.why_not, self._process = None, None, None
        self._connection, theirs = Pipe()
        command = [python, "-m", __name__, name, str(threads), str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command, cwd=Path(__file__).parents[1], pass_fds=[theirs.fileno()]
            )
        except OSError as error:
            self.why_not = str(error)
            return
        finally:
            theirs.close()
        try:
            self.version, self.why_not = self._connection.recv()
        except EOFError:
            self.why_not = f"{python} ended with exit code {self._process.wait()}."

    def open(self, case: Case, passes: str) -> dict[str, "Remote | str"]:
        """The columns of a row; a line instead of a column that cannot run it. None of another
        family.
        """
        if self.families is not None and case.family not in self.families:
            return {}
        if self.why_not:
            return {self.name: self.why_not}
        answer = self.ask("open", case, passes)
        return {name: why_not or Remote(self, name) for name, why_not in answer.items()}

    def ask(self, *question):
        self._connection.send(question)
        return self._connection.recv()

    def close(self) -> None:
        self._connection.close()
        if self._process:
            self._process.wait()


class Remote:
    """A column of the other process; it is timed there."""

    def __init__(self, worker: Worker, name: str):
        self.worker, self.name = worker, name

    def sample(self, calls: int) -> tuple[list[float], float]:
        return self.worker.ask("sample", self.name, calls)


def _serve(connection: Connection, name: str, threads: int) -> None:
    try:
        peer = importlib.import_module(f"benchmarks.{name}_columns")
    except ImportError as error:
        connection.send((None, f"not installed: {error}"))
        return
    connection.send((peer.set_up(threads), None))
    columns = {}
    while True:
        try:
            what, *arguments = connection.recv()
        except EOFError:
            return
        if what == "sample":
            column, calls = arguments
            connection.send(sample(columns[column], calls))
        else:
            columns, why_not = _open(peer, *arguments)
            connection.send(why_not)


def _open(peer, case: Case, passes: str) -> tuple[dict, dict]:
    columns, why_not = {}, {}
    data = peer.data(case)
    for name in peer.NAMES:
        try:
            columns[name] = peer.column(name, case, passes, *data)
            columns[name]()
            why_not[name] = None
        except Exception as error:  # no such layer, dtype or batch: reported, the others go on
            columns.pop(name, None)
            why_not[name] = (str(error).splitlines() or [type(error).__name__])[0]
    return columns, why_not


if __name__ == "__main__":
    peer, threads, descriptor = sys.argv[1:]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _serve(Connection(int(descriptor)), peer, int(threads))
