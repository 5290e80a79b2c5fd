"""Times the layers beside Keras, PyTorch and a plain copy.

    python -m benchmarks [--quick] [--json FILE]    measures, prints, keeps the result
    python -m benchmarks.render                     writes the kept result into README.md

`cases` says what is measured, `tf_columns` and `torch_columns` how each peer computes it, `timing`
how it is timed, `results` what is kept and what follows from it.
"""
