// onnxruntime-web, kept to one thread and to files of this server.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("./runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };

export const Tensor = ort.Tensor;

/** A network from the bytes of an ONNX file. */
export function openNetwork(bytes) {
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}
