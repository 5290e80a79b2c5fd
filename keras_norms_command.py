"""Starts the `keras-norms` command without importing Keras.

`import keras_norms` imports Keras and its backend. The command has to speak where that fails, and
`keras-norms build` needs neither; so `keras_norms.cli` is imported as part of a package whose own
code has not run. `cli_tflite.whole_package` runs it where a command needs it.
"""

import importlib.util
import os
import sys


def main() -> int:
    """The `keras-norms` command."""
    spec = importlib.util.find_spec("keras_norms")
    sys.modules["keras_norms"] = importlib.util.module_from_spec(spec)
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
