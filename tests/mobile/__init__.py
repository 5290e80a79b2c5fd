"""The runtimes that users' phones and browsers have, as functions of files and arrays.

    native.py    LiteRT and tf.lite of this machine, with and without XNNPACK
    aarch64.py   LiteRT's aarch64 wheel under qemu
    gpu.py       LiteRT's GPU delegate on Mesa's software Vulkan
    browser.py   LiteRT.js in headless Chromium

Each has `available()`, `set_up()`, `outcomes(jobs)` and `run(jobs)`; `runtimes.py` is their table.
What they share:

    job.py       what is asked of a runtime, and its failure
    process.py   one process for many jobs; workers/ is what runs inside of it
    cache.py     folders that are made once
    debian.py, wheels.py, npm.py    where they come from; archive.py unpacks
    qemu.py, chromium.py    programs that are taken from them
    page.py      the server of the browser's page
    agreement.py how far outputs are from the wanted ones
    smoke.py     the smallest file, which shows that a runtime works

`python -m tests.mobile` sets up. Nothing here needs pytest, Keras or TensorFlow.
"""
