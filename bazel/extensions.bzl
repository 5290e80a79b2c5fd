"""For MODULE.bazel; in a file of its own, since Bazel before 6 has no extensions."""

load("//bazel:tensorflow.bzl", "tensorflow_wheel")

def _tensorflow(_context):
    tensorflow_wheel(name = "tensorflow")

tensorflow = module_extension(implementation = _tensorflow)
