"""Errors of the converter in the words of the command line: options in the place of arguments."""

import ast
import re
from typing import Any

# Arguments that the functions' errors speak of, as the commands have them. What `argparse` and
# `_wrong_usage` refuse comes to no function.
TYPED = {
    "batch_size": "--batch-size",
    "data": "--data",
    "input_shapes": "--input-shape",
    "path": "output",
    "quantize": "--quantize",
    "representative_data": "--calibration",
    "tolerance": "--tolerance",
}
# What else is said otherwise in Python.
SAID = {"verify=False": "--no-verify", "a size given there as None": "a size given there as ?"}

_NAMES = "|".join(TYPED)
_NAMED = re.compile(
    rf"(?P<said>{'|'.join(SAID)})"
    rf"|`(?P<alone>{_NAMES})`"
    rf"|\b(?P<name>{_NAMES})=(?P<value>'[^']*'|\([^)]*\)|\{{[^}}]*\}}|[-+.\w]*\w)"
    r"|(?<!\w)'[^']*'"  # a user's own name
)


def as_typed(message: str) -> str:
    """An error's words with the options in the place of Python's arguments."""
    return _NAMED.sub(_typed, message)


def _typed(found: re.Match) -> str:
    if found["said"]:
        return SAID[found["said"]]
    if found["alone"]:
        return f"`{TYPED[found['alone']]}`"
    if not found["name"]:
        return found[0]
    option, text = TYPED[found["name"]], found["value"]
    if not option.startswith("--"):
        return f"{option}={text}"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # not one of the functions' own errors
        return found[0]
    if isinstance(value, dict):
        return " ".join(f"{option} {name}={_sizes(sizes)}" for name, sizes in value.items())
    if isinstance(value, tuple):
        return f"{option} {_sizes(value)}"
    if value is None:
        return f"{option} 0" if option == "--batch-size" else f"no {option}"
    return f"{option} {text.strip(chr(39))}"


def _sizes(sizes: Any) -> str:
    if not isinstance(sizes, tuple):
        return str(sizes)
    return ",".join("?" if size is None else str(size) for size in sizes)
