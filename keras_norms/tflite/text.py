"""What was found, as a person and as a program read it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any


def as_json(found: Any) -> str:
    """JSON of dataclasses; a number that is not finite, which JSON has not, is null."""
    return json.dumps(_plain(found), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Rows of a name and a value.

    A file can hold any characters as names; those that steer a terminal are written as escapes.
    """
    rows = [tuple(map(_printable, row)) for row in rows]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
