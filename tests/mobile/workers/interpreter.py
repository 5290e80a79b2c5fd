"""The interpreter of LiteRT, or of TensorFlow."""

import exchange


def classes(name):
    if name == "litert":
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        return Interpreter, OpResolverType
    import tensorflow as tf

    return tf.lite.Interpreter, tf.lite.experimental.OpResolverType


def load(path, options):
    interpreter, resolver = classes(options["interpreter"])
    model = interpreter(
        model_path=path,
        num_threads=options["threads"],
        experimental_op_resolver_type=resolver.AUTO
        if options["xnnpack"]
        else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = model.get_signature_runner()
    (batch,) = {int(detail["shape"][0]) for detail in runner.get_input_details().values()}
    return batch, lambda inputs: runner(**inputs)


exchange.serve(load)
