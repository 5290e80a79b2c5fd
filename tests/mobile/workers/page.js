// Takes jobs from the server one by one and posts what LiteRT.js makes of them (page.py).
import {loadAndCompile, loadLiteRt, Tensor} from "@litertjs/core";

const ARRAYS = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};

// The next job, null after the last one; the arrays' bytes follow its line of JSON.
async function take() {
  const bytes = new Uint8Array(await (await fetch("/job")).arrayBuffer());
  const end = bytes.indexOf(10);
  const job = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  let at = end + 1;
  for (const input of job?.inputs ?? []) {
    const type = ARRAYS[input.dtype];
    if (!type) throw new Error(`LiteRT.js has no tensors of ${input.dtype}`);
    const size = input.shape.reduce((a, b) => a * b, 1) * type.BYTES_PER_ELEMENT;
    input.array = new type(bytes.slice(at, at + size).buffer);
    at += size;
  }
  return job;
}

async function post(head, arrays = []) {
  const body = new Blob([JSON.stringify(head) + "\n", ...arrays]);
  await fetch("/outcome", {method: "POST", body});
}

// The outputs of all samples, in runs of the file's batch.
async function run(job) {
  const file = new Uint8Array(await (await fetch("/model")).arrayBuffer());
  const model = await loadAndCompile(file, job.options);
  const details = Object.fromEntries(model.getInputDetails().map((d) => [d.name, d]));
  const samples = job.inputs[0].shape[0];
  const batch = details[job.inputs[0].name].shape[0];
  if (samples === 0 || samples % batch) throw new Error(`${samples} samples, batches of ${batch}`);
  const parts = {};
  for (let k = 0; k < samples; k += batch) {
    const given = {};
    for (const {name, array, shape} of job.inputs) {
      const row = array.length / samples;
      given[name] =
          new Tensor(array.slice(k * row, (k + batch) * row), [batch, ...shape.slice(1)]);
    }
    const results = await model.run(given);
    for (const [name, tensor] of Object.entries(results)) {
      const {dtype, layout} = tensor.type;
      const shape = [...layout.dimensions];
      parts[name] ??= {dtype, shape: [0, ...shape.slice(1)], arrays: []};
      parts[name].shape[0] += shape[0];
      parts[name].arrays.push(tensor.toTypedArray().slice());
      tensor.delete();
    }
    Object.values(given).forEach((tensor) => tensor.delete());
  }
  model.delete();
  const outputs = Object.entries(parts).map(([name, {dtype, shape}]) => ({name, dtype, shape}));
  return [outputs, Object.values(parts).flatMap((part) => part.arrays)];
}

await loadLiteRt("/@litertjs/core/package/wasm/");
for (let job = await take(); job; job = await take()) {
  try {
    const [outputs, arrays] = await run(job);
    await post({number: job.number, outputs}, arrays);
  } catch (error) {
    await post({number: job.number, error: `${error}\n${error.stack ?? ""}`});
    location.reload();  // An aborted WebAssembly module runs nothing any more.
    await new Promise(() => {});
  }
}
