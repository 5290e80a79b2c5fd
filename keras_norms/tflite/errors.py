"""The error of this package."""


class ConversionError(ValueError):
    """The model cannot be written as a `.tflite` file that computes the same; none was written."""
