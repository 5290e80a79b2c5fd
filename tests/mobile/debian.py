"""Packages of a Debian release with all they need, unpacked into a folder: no root, no chroot.

apt gets a state of its own, in which nothing is installed, so it downloads every dependency; it
checks the archive's signatures. Within the release, which only gets fixes, versions float: the
archive keeps no older ones.
"""

import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

from . import archive as archives
from .cache import SetUpFailed, command, made

RELEASE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = f"""\
deb [signed-by={KEYRING}] http://deb.debian.org/debian {RELEASE} main
deb [signed-by={KEYRING}] http://deb.debian.org/debian-security {RELEASE}-security main
"""
PYTHON = "3.13"  # the release's


def available() -> str | None:
    if platform.machine() != "x86_64":
        return f"it is set up on x86-64 only, and this machine is {platform.machine()}"
    for tool in "apt-get", "dpkg-deb":
        if shutil.which(tool) is None:
            return f"{tool} is missing: it is set up on Debian and Ubuntu only"
    if not KEYRING.exists():
        return f"{KEYRING} is missing: apt-get install debian-archive-keyring"
    return None


def root(name: str, architecture: str, *packages: str, keep: str = "*") -> Path:
    """A folder with `usr`, `etc`, ... of these packages and their dependencies.

    Args:
        architecture: Debian's name of it.
        keep: a pattern of the paths that are unpacked, "usr/bin/*".
    """

    def make(folder: Path, _: Path) -> None:
        unpack(folder, architecture, packages, keep)

    return made(name, [RELEASE, architecture, packages, keep], make)


def unpack(folder: Path, architecture: str, packages: tuple[str, ...], keep: str = "*") -> None:
    state = folder / ".apt"
    for part in "lists/partial", "archives/partial":
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(SOURCES)
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",  # no other user needs to reach the folder
        "APT::Update::Error-Mode": "any",  # else an archive out of reach is a warning
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    configuration = state / "apt.conf"
    configuration.write_text("".join(f'{name} "{value}";\n' for name, value in options.items()))
    apt = ["apt-get", "-q", "-y", "-c", configuration]
    command(*apt, "update")
    command(*apt, "install", "--download-only", "--no-install-recommends", *packages)
    found = sorted((state / "archives").glob("*.deb"))
    for archive in found:
        extract(archive, folder, keep)
    (folder / "packages.txt").write_text("".join(f"{archive.name}\n" for archive in found))
    shutil.rmtree(state)
    # Where the loader and programs look, which a package of the base system links.
    for link in "bin", "lib", "lib64":
        if (folder / "usr" / link).is_dir():
            (folder / link).symlink_to(Path("usr") / link)


def extract(archive: Path, folder: Path, keep: str) -> None:
    if keep == "*":
        command("dpkg-deb", "-x", archive, folder)
        return
    words = ["dpkg-deb", "--fsys-tarfile", archive]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as members,
    ):
        archives.extract(members, folder, keep)
        unpacked.stdout.read()
    if unpacked.returncode:
        raise SetUpFailed(f"dpkg-deb --fsys-tarfile {archive} ended with {unpacked.returncode}")
