"""Regular files of tar archives. (`tarfile` has filters only since Python 3.11.4.)"""

import tarfile
from fnmatch import fnmatch
from pathlib import Path

from .cache import SetUpFailed


def extract(archive: tarfile.TarFile, folder: Path, keep: str = "*") -> None:
    """Writes the files whose paths match `keep` below the folder.

    Raises: SetUpFailed, if a path leads out of it.
    """
    for member in archive:
        name = member.name.removeprefix("./")
        if not member.isfile() or not fnmatch(name, keep):
            continue
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise SetUpFailed(f"Paths must stay in their folder. Received: {member.name!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(archive.extractfile(member).read())
        target.chmod(member.mode & 0o777 | 0o600)
