"""From a Keras model to a `.tflite` file for LiteRT, run and compared before it is called done.

The rooms, in the order a model passes through them:

    load.py        a model from a file, whose HDF5 hdf5_child.py reads first
    sources.py     what is converted: a Keras model, or a SavedModel as it is
    signature.py   the model's inputs, with every size fixed
    layers.py      how its norm layers are called for a file, Keras' as ours
    marks.py       where they begin and end in the trace; origins.py whose the operators are
    writer.py      TensorFlow's converter
    lowering.py    which form each norm takes, by target: the table and the pass over the file
      fold.py        into the weights around it
      forms.py       into LiteRT's operators, written by builder.py
      tidy.py      what TensorFlow's converter leaves to do
    checks.py      what a file must not hold
    quantize.py    the numbers' format: samples.py (of the user's, which steps.py takes apart),
                   plan.py what stays float32, choice.py which norms do, engine.py and halves.py
                   which write it, probe.py which looks into it
    verify.py      the file run by runtimes.py, beside the model run by Keras
    metadata.py    what the file says of itself; vectors.py the sample that it holds
    report.py      what a person or a program reads at the end

`convert.py` leads through them; graph.py is the file as all of them see it. Beside it stand
`inspection.py`, which reads a file after extent.py has found it bounded, and `compare.py`, which
runs two; text.py prints what is found.
"""

from keras_norms.tflite.compare import Comparison, Timing, bench, compare
from keras_norms.tflite.convert import convert
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.inspection import Inspection, inspect
from keras_norms.tflite.report import Report
from keras_norms.tflite.runtimes import Runtime, run
from keras_norms.tflite.vectors import Sample, test_vectors

__all__ = [
    "Comparison",
    "ConversionError",
    "Inspection",
    "Report",
    "Runtime",
    "Sample",
    "Timing",
    "bench",
    "compare",
    "convert",
    "inspect",
    "run",
    "test_vectors",
]
