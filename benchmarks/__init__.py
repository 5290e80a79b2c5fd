"""Times the layers, and models of them, beside Keras, PyTorch, tensorflow-addons and a plain copy.

    python -m benchmarks [--quick] [--json FILE]    measures, prints, keeps the result
    python -m benchmarks --compare [FILE]           compares what is kept, and measures nothing
    python -m benchmarks.render                     writes the kept result into README.md

`cases` says what is measured; `layers` and `models` make it, of ours or of Keras' layers, and
`tf_columns`, `torch_columns` and `addons_columns` compute it. `timing` says how it is timed,
`results` what is kept, `floor` what must move through memory, `goals` and `compare` what follows.
"""
