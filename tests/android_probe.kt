// Runs the app's own classes on a JVM, for tests/test_android.py.
package kerasnorms.digits

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kerasnorms.customop.NormsDelegate
import org.json.JSONArray
import org.json.JSONObject

fun main(arguments: Array<String>) {
    when (arguments[0]) {
        "read" -> println(contents(File(arguments[1])))
        "fit" -> {
            val (side, width, height) = arguments.drop(2).map { it.toInt() }
            fit(File(arguments[1]), side, width, height)
        }
        "delegate" -> delegate()
    }
}

private fun contents(path: File): JSONObject {
    val file = TfliteFile(path.readBytes())
    val vectors = TestVectors.of(file)
    val classifier = DigitClassifier(file, Echo)
    return JSONObject()
        .put("shapes", JSONArray(file.inputShapes.map { JSONArray(it.toList()) }))
        .put("side", classifier.side)
        .put("inputs", json(vectors.inputs))
        .put("outputs", json(vectors.outputs))
}

private object Echo : Runner {
    override fun run(input: FloatArray) = input

    override fun close() {}
}

private fun json(values: Map<String, Values>) =
    JSONObject().also { all ->
        for ((name, value) in values) {
            val bits = value.data.map { it.toRawBits() } // exact, for every float
            val shape = JSONArray(value.shape.toList())
            all.put(name, JSONObject().put("shape", shape).put("bits", JSONArray(bits)))
        }
    }

/** Images of float32, one after the other; each is replaced by what the model is given of it. */
private fun fit(path: File, side: Int, width: Int, height: Int) {
    val images = ByteBuffer.wrap(path.readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    val count = images.capacity() / (width * height)
    val out = ByteBuffer.allocate(4 * count * side * side).order(ByteOrder.LITTLE_ENDIAN)
    repeat(count) {
        val ink = FloatArray(width * height).also { images.get(it) }
        Grayscale(width, height, ink).fit(side)!!.forEach { out.putFloat(it) }
    }
    path.writeBytes(out.array())
}

private fun delegate() {
    val delegate = NormsDelegate()
    check(delegate.nativeHandle != 0L)
    delegate.close()
    delegate.close()
    try {
        delegate.nativeHandle
    } catch (error: IllegalStateException) {
        println(error.message)
    }
}
