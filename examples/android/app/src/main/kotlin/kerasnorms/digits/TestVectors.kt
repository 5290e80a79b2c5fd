package kerasnorms.digits

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import org.json.JSONException
import org.json.JSONObject

/** An array of float32 and its shape. */
class Values(val shape: IntArray, val data: FloatArray)

/**
 * Sample inputs and what Keras makes of them, by the names of inputs and outputs. `keras_norms`
 * writes them into the .tflite file, so that every device can check the model it was given.
 */
class TestVectors(val inputs: Map<String, Values>, val outputs: Map<String, Values>) {
    companion object {
        const val METADATA = "keras_norms.test_vectors"

        /** @throws IllegalArgumentException where the file has no test vectors, or broken ones. */
        fun of(file: TfliteFile): TestVectors {
            val text =
                requireNotNull(file.metadata(METADATA)) {
                    "The file has no metadata \"$METADATA\"."
                }
            try {
                val json = JSONObject(String(text, Charsets.UTF_8))
                return TestVectors(
                    values(json.getJSONObject("inputs")),
                    values(json.getJSONObject("outputs")),
                )
            } catch (error: JSONException) {
                throw IllegalArgumentException("\"$METADATA\": ${error.message}", error)
            }
        }

        private fun values(json: JSONObject): Map<String, Values> =
            json.keys().asSequence().map { it.toString() }.associateWith { name ->
                value(name, json.getJSONObject(name))
            }

        private fun value(name: String, json: JSONObject): Values {
            val dtype = json.getString("dtype")
            require(dtype == "float32") { "Test vectors are float32. Received: $dtype for $name." }
            val sizes = json.getJSONArray("shape")
            val shape = IntArray(sizes.length()) { sizes.getInt(it) }
            val bytes = Base64.getDecoder().decode(json.getString("data"))
            val count = shape.fold(1L) { product, size -> product * size }
            require(bytes.size.toLong() == 4 * count) {
                "$name of shape ${shape.toList()} has ${4 * count} bytes. Received: ${bytes.size}."
            }
            val data = FloatArray(count.toInt())
            ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(data)
            return Values(shape, data)
        }
    }
}
