"""Packages of the npm registry, without npm."""

import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

from .archive import extract
from .cache import SetUpFailed, made

REGISTRY = "https://registry.npmjs.org"
# The package's version and the registry's `dist.integrity` of it.
PACKAGES = {
    "@litertjs/core": (
        "2.5.3",
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkv"
        "iYGr9OFDL1kCnN4nzWoyJQ==",
    ),
    "@litertjs/wasm-utils": (
        "2.5.3",
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2k"
        "T39A9OYBVdFawteZ/sI1kQ==",
    ),
}


def litert_js() -> Path:
    """A folder with each of the packages under its name."""

    def make(folder: Path, _: Path) -> None:
        for name, (version, integrity) in PACKAGES.items():
            content = download(f"{REGISTRY}/{name}/-/{name.split('/')[-1]}-{version}.tgz")
            check(name, content, integrity)
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                extract(archive, folder / name)

    return made("npm", PACKAGES, make)


def download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except OSError as error:
        raise SetUpFailed(f"{url}: {error}") from error


def check(name: str, content: bytes, integrity: str) -> None:
    """Raises: SetUpFailed, if it is not what the registry had when the version was pinned."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != integrity:
        raise SetUpFailed(f"{name} must be {integrity}. Received: {found}")
