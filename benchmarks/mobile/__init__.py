"""What the converter gains over plain `model.export(format="litert")`, measured in one run.

    python -m benchmarks.mobile            measures, keeps the result, writes docs/mobile.md
    python -m benchmarks.mobile.render     writes the kept result into docs/mobile.md

`models` has the networks and `files` what writes them, TensorFlow's quantizing converter in a
process of its own (`isolated`). `timed`, `gpu`, `integers` and `errors` measure; `latency` says how
times are taken. `results` is what is kept, `goals` what is held beside it, `tables` and `render`
make Markdown of both. The GPU delegate is that of tests/mobile, the gains are those of
tests/tflite_nets.py.
"""
