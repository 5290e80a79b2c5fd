"""The tools that check examples/android without Google's SDK, unpacked below build/android.

Nothing is installed, and no root is needed: the Kotlin compiler comes from npm, Google's resource
compiler `aapt`, Android's own resources, JUnit and org.json come from Debian, a Kotlin grammar from
PyPI. A tool that cannot be had skips the tests that need it, with the reason.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build" / "android"
KOTLIN = "2.4.20"
GRAMMAR = ("tree-sitter==0.26.1", "tree-sitter-kotlin==1.1.0")
DEBIAN = {
    "aapt": (
        "aapt",
        "android-libaapt",
        "android-libandroidfw",
        "android-libbacktrace",
        "android-libbase",
        "android-libcutils",
        "android-liblog",
        "android-libutils",
        "android-libziparchive",
        "android-framework-res",
        "libprotobuf-lite32",
        "p7zip-full",
    ),
    "jars": ("junit4", "libhamcrest-java", "libandroid-json-org-java"),
}


def run(*command, **options):
    """What it writes. Its words are the error's, too."""
    command = [str(word) for word in command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout


def need(*programs):
    for program, package in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install {package}")


def fetched(name, fetch):
    """A folder that is whole or not there: `fetch` fills another one, which then takes its name."""
    folder = FOLDER / name
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as made:
            try:
                fetch(Path(made))
            except AssertionError as error:
                pytest.skip(f"{name} cannot be fetched: {error}")
            try:
                os.rename(made, folder)
            except OSError:  # another process was faster
                assert folder.exists()
            else:
                os.mkdir(made)  # for the context manager to remove
    return folder


def debian(name):
    need(("apt-get", "apt"), ("dpkg-deb", "dpkg"))

    def fetch(folder):
        run("apt-get", "download", *DEBIAN[name], cwd=folder)
        for package in folder.glob("*.deb"):
            run("dpkg-deb", "-x", package, folder)
            package.unlink()

    return fetched(name, fetch)


def kotlin():
    need(("npm", "npm"), ("java", "default-jre-headless"))

    def fetch(folder):
        run("npm", "pack", f"kotlin-compiler@{KOTLIN}", cwd=folder)
        (archive,) = folder.glob("*.tgz")
        run("tar", "xzf", archive, "--strip-components=1", cwd=folder)
        archive.unlink()

    return fetched(f"kotlin-{KOTLIN}", fetch)


def grammar():
    """A folder for PYTHONPATH."""

    def fetch(folder):
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--target", folder)
        run(*pip, "--only-binary=:all:", *GRAMMAR)

    return fetched(f"grammar-{sys.implementation.cache_tag}", fetch)


def jars():
    """JUnit 4 and org.json as Android has it, as a class path."""
    folder = debian("jars") / "usr" / "share" / "java"
    return [folder / name for name in ("junit4.jar", "hamcrest.jar", "json-android.jar")]


def aapt(*arguments):
    folder = debian("aapt")
    if not list((folder / "usr" / "bin").glob("aapt")):
        pytest.skip(f"Debian has no aapt for this machine: {folder}")
    libraries = {path.parent for path in (folder / "usr" / "lib").rglob("*.so*")}
    environment = os.environ | {"LD_LIBRARY_PATH": class_path(*libraries)}
    framework = folder / "usr" / "share" / "android-framework-res" / "framework-res.apk"
    return run(folder / "usr/bin/aapt", *arguments, "-I", framework, env=environment)


def class_path(*entries):
    return ":".join(str(entry) for entry in entries)


def javac(output, sources, *libraries):
    need(("javac", "default-jdk-headless"))
    run("javac", "-Werror", "-d", output, "-cp", class_path(output, *libraries), *sources)


def kotlinc(output, sources, *libraries):
    """By the compiler that Gradle uses. Warnings are errors."""
    home = kotlin()
    library = home / "lib"
    compiler = ("kotlin-compiler", "kotlin-stdlib", "kotlinx-coroutines-core-jvm")
    run(
        "java",
        "-Xmx1g",
        "-cp",
        class_path(*(library / f"{name}.jar" for name in compiler)),
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
        *("-kotlin-home", home, "-jvm-target", "17", "-no-reflect", "-Werror"),
        *("-cp", class_path(*libraries), "-d", output),
        *sources,
    )


def java(main, *arguments, libraries, options=()):
    library = kotlin() / "lib" / "kotlin-stdlib.jar"
    return run("java", *options, "-cp", class_path(*libraries, library), main, *arguments)
