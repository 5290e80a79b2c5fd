"""qemu-aarch64, which runs programs for aarch64. LiteRT needs a newer one than Debian 12's 7.2.

`python -m tests.mobile.qemu` prints where it is.
"""

from pathlib import Path

from . import debian


def program() -> Path:
    """The program, a static one."""
    name = "usr/bin/qemu-aarch64"
    return debian.root("qemu", "amd64", "qemu-user", keep=name) / name


if __name__ == "__main__":
    print(program())
