"""LiteRT's CompiledModel on the GPU alone: a file that needs the CPU as well is refused."""

import exchange
import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options


def load(path, options):
    gpu = GpuOptions(enforce_f32=options["precision"] == "fp32")
    model = CompiledModel.from_file(path, options=Options(HardwareAccelerator.GPU, gpu_options=gpu))
    (key,) = model.get_signature_list()
    takes, gives = model.get_input_tensor_details(key), model.get_output_tensor_details(key)
    into = {name: model.create_input_buffer_by_name(key, name) for name in takes}
    out_of = {name: model.create_output_buffer_by_name(key, name) for name in gives}
    (batch,) = {detail["shape"][0] for detail in takes.values()}

    def run(inputs):
        for name, detail in takes.items():
            array = inputs[name]
            if list(array.shape) != list(detail["shape"]) or array.dtype != detail["dtype"]:
                raise ValueError(f"{name} must be {detail}. Received: {array.dtype}{array.shape}")
            into[name].write(array)
        model.run_by_name(key, into, out_of)
        return {
            name: out_of[name]
            .read(int(np.prod(detail["shape"])), np.dtype(detail["dtype"]))
            .reshape(detail["shape"])
            for name, detail in gives.items()
        }

    return batch, run


exchange.serve(load)
