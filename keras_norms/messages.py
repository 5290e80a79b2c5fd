"""Errors as a person reads them."""

import re


def one_line(error: BaseException, most: int = 300) -> str:
    """What an error says, without Keras' colours and line breaks; its type if it says nothing."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return text[:most] or type(error).__name__
