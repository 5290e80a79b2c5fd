"""PyTorch in a process of its own: its threads and allocator stay out of TensorFlow's."""

import multiprocessing

from benchmarks.cases import Case
from benchmarks.timing import sample


class Torch:
    """Starts the process. `why_not` is a line if PyTorch cannot be imported there."""

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        self.version, self.why_not = self._connection.recv()

    def open(self, case: Case, passes: str) -> dict[str, "Remote | str"]:
        """The columns of a row; a line instead of a column that cannot run it."""
        if self.why_not:
            return {"torch": self.why_not}
        answer = self.ask("open", case, passes)
        return {name: why_not or Remote(self, name) for name, why_not in answer.items()}

    def ask(self, *question):
        self._connection.send(question)
        return self._connection.recv()

    def close(self) -> None:
        self._connection.send(None)
        self._process.join()


class Remote:
    """A column of the other process; it is timed there."""

    def __init__(self, worker: Torch, name: str):
        self.worker, self.name = worker, name

    def sample(self, calls: int) -> tuple[list[float], float]:
        return self.worker.ask("sample", self.name, calls)


def _serve(connection, threads: int) -> None:
    try:
        import torch

        from benchmarks import torch_columns
    except ImportError as error:
        connection.send((None, f"PyTorch is not here: {error}"))
        connection.recv()
        return
    torch.set_num_threads(threads)
    connection.send((torch.__version__, None))
    columns = {}
    while (question := connection.recv()) is not None:
        what, *arguments = question
        if what == "sample":
            name, calls = arguments
            connection.send(sample(columns[name], calls))
            continue
        case, passes = arguments
        columns, why_not = {}, {}
        x, dy = torch_columns.data(case)
        for name in torch_columns.FORMATS:
            try:
                columns[name] = torch_columns.column(name, case, passes, x, dy)
                columns[name]()
                why_not[name] = None
            except Exception as error:  # no such layer, dtype or batch: reported, the others go on
                columns.pop(name, None)
                why_not[name] = str(error).splitlines()[0]
        connection.send(why_not)
