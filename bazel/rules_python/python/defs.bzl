"""Bazel 4's own Python rules under the names that later ones give them in rules_python."""

py_library = native.py_library
