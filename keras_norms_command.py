"""Starts the `keras-norms` command without importing Keras.

`import keras_norms` imports Keras and its backend. The command has to speak where that fails, and
`keras-norms build` needs neither; so `keras_norms.cli` is imported as part of an empty package.
"""

import importlib.util
import os
import sys
import types


def main() -> int:
    """The `keras-norms` command."""
    if "list" not in sys.argv[1:2]:  # which reads the layers' table
        package = types.ModuleType("keras_norms")
        package.__path__ = importlib.util.find_spec("keras_norms").submodule_search_locations
        sys.modules["keras_norms"] = package
    try:
        from keras_norms import cli
    except ImportError as error:
        print(f"keras-norms: {error}. Run `keras-norms doctor`.", file=sys.stderr)
        return 1
    try:
        status = cli.main()
        sys.stdout.flush()
    except BrokenPipeError:  # as under `head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
