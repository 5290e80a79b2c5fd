"""From a Keras model to a `.tflite` file for LiteRT, run and compared before it is called done.

The rooms, in the order a model passes through them:

    signature.py   the model's inputs, with every size fixed
    lowering.py    which of our layers can be written, and in which form
    quantize.py    the numbers' format; for now everything is written in float32
    writer.py      TensorFlow's converter
    contents.py    what stands in a file: its operations and its tensors' ranks
    verify.py      the file run by LiteRT, beside the model run by Keras
    report.py      what a person or a program reads at the end

`convert.py` leads through them.
"""

from keras_norms.tflite.convert import convert
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.report import Report
from keras_norms.tflite.verify import run

__all__ = ["ConversionError", "Report", "convert", "run"]
