"""The installed TensorFlow wheel as a repository: headers, libraries, version, interpreter."""

_PROBE = """
import sys, tensorflow as tf
print(tf.__version__, tf.sysconfig.get_lib(), sys.executable, sep="\\n")
print(*[f[2:] for f in tf.sysconfig.get_compile_flags() if f.startswith("-D")])
"""

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

exports_files(["python", "version"])

cc_library(
    name = "tensorflow",
    hdrs = glob(["include/**"]),
    defines = %r,
    includes = [
        "include",
        "include/external/farmhash_archive/src",
        "include/external/highwayhash",
    ],
    linkopts = [
        "-L%s",
        "-l:libtensorflow_framework.so.2",
        "-l:libtensorflow_cc.so.2",
    ],
)
"""

def _tensorflow_wheel(context):
    python = context.os.environ.get("KERAS_NORMS_PYTHON") or context.which("python3")
    said = context.execute([python, "-c", _PROBE], quiet = True)
    if said.return_code:
        fail(("`import tensorflow` fails in %s. " % python) +
             "Name another interpreter: --repo_env=KERAS_NORMS_PYTHON=/path/to/python")
    version, directory, executable, defines = said.stdout.strip().split("\n")[-4:]
    context.symlink(directory + "/include", "include")
    context.file("BUILD", _BUILD % (defines.split(" "), directory))
    context.file("version", version)
    context.file("python", "#!/bin/sh\nexec '%s' \"$@\"\n" % executable, executable = True)

tensorflow_wheel = repository_rule(
    implementation = _tensorflow_wheel,
    environ = ["KERAS_NORMS_PYTHON"],
    local = True,
)
