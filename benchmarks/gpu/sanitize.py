"""compute-sanitizer on small.py: what reads or writes where it must not, races, reads too early."""

import re
import shutil
import subprocess
import sys

TOOLS = ("memcheck", "racecheck", "initcheck")
COMMAND = "compute-sanitizer"
FOUND = 77  # the exit code that it is told to end with if it found something


def sanitize(tool: str, seconds: float, run=subprocess.run) -> dict:
    """The row of one tool. `skipped` says why there is no result, `failed` what was found."""
    row = {"title": f"{COMMAND} {tool}"}
    command = shutil.which(COMMAND) or shutil.which(COMMAND, path="/usr/local/cuda/bin")
    if command is None:
        return row | {"skipped": f"{COMMAND} is not installed"}
    program = [sys.executable, "-m", "benchmarks.gpu.small"]
    options = ["--tool", tool, "--error-exitcode", str(FOUND)]
    try:
        done = run([command, *options, *program], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return row | {"skipped": f"it did not end in {seconds:.0f} s"}
    except OSError as error:
        return row | {"failed": f"{type(error).__name__}: {error}"}
    return row | verdict(done.returncode, done.stdout + done.stderr)


def verdict(code: int, output: str) -> dict:
    """What the tool's exit code and text mean."""
    summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    ran = re.search(r"^(\d+) kernels ran", output, re.MULTILINE)
    if code == 0 and ran and summary and re.search(r" 0 (errors|hazards)", summary[-1]):
        return {"passed": f"{summary[-1]}; {ran[0]}"}
    if "not supported" in output:  # as on virtual machines that hide the debugger's interface
        lines = [line for line in output.splitlines() if "not supported" in line]
        return {"skipped": lines[0].strip("= ")[:300]}
    return {"failed": "\n".join([f"exit code {code}", *output.strip().splitlines()[-12:]])[:2000]}
