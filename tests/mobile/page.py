"""The server of the page that runs jobs by LiteRT.js.

What goes either way is a line of JSON and then the arrays' bytes, one after the other.
"""

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from .job import Failure, Job, Outcome

WORKERS = Path(__file__).resolve().parent / "workers"
TYPES = {".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm"}


class Page:
    """Serves jobs on localhost while it is entered.

    Attributes:
        address: of the page.
        outcomes: of the jobs that are done.
        done: an event, set when all of them are.
    """

    def __init__(self, jobs: list[Job], packages: Path):
        self.jobs, self.packages = jobs, packages
        self.outcomes: list[Outcome] = []
        self.done = threading.Event()
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = page.answer(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Type", TYPES.get(Path(self.path).suffix, "text/plain"))
                self.send_header("Content-Length", str(len(content or b"")))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(content or b"")

            def do_POST(self):
                page.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/page.html"

    def __enter__(self) -> "Page":
        if not self.jobs:
            self.done.set()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str) -> bytes | None:
        """What is at a path: the next job, its model, the page, or a file of the packages."""
        if path == "/job":
            return self.next_job()
        if path == "/model":
            return Path(self.jobs[len(self.outcomes)].path).read_bytes()
        if path in ("/page.html", "/page.js"):
            return (WORKERS / path[1:]).read_bytes()
        file = (self.packages / path[1:]).resolve()
        return file.read_bytes() if self.packages in file.parents and file.is_file() else None

    def next_job(self) -> bytes:
        k = len(self.outcomes)
        if k == len(self.jobs):
            return b"null\n"
        job = self.jobs[k]
        inputs = [
            {"name": name, "dtype": str(array.dtype), "shape": array.shape}
            for name, array in job.inputs.items()
        ]
        head = {"number": k, "inputs": inputs, "options": dict(job.options)}
        return (
            json.dumps(head).encode() + b"\n" + b"".join(a.tobytes() for a in job.inputs.values())
        )

    def take(self, answer: bytes) -> None:
        head, _, content = answer.partition(b"\n")
        said = json.loads(head)
        if said["number"] != len(self.outcomes):
            raise ValueError(f"The next job is {len(self.outcomes)}. Received: {said['number']}")
        if said.get("error"):
            job = self.jobs[said["number"]]
            self.outcomes.append(Failure(f"{job.path}: {said['error']}"))
        else:
            self.outcomes.append(unpacked(said["outputs"], content))
        if len(self.outcomes) == len(self.jobs):
            self.done.set()

    def fail_the_rest(self, why: str) -> None:
        for job in self.jobs[len(self.outcomes) :]:
            self.outcomes.append(Failure(f"{job.path}: {why}"))


def unpacked(described: list[dict], content: bytes) -> dict[str, np.ndarray]:
    found, at = {}, 0
    for one in described:
        count = math.prod(one["shape"])
        array = np.frombuffer(content, one["dtype"], count, at)
        found[one["name"]] = array.reshape(one["shape"])
        at += array.nbytes
    if at != len(content):
        raise ValueError(f"{described} has {at} bytes. Received: {len(content)}")
    return found
