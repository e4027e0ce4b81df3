// The message format of ppfr.wire: coded tensors as safetensors in a zstd frame, here of raw blocks.

import { encode } from "./codings.js";

const VERSION = "2";
const MAGIC = [0x28, 0xb5, 0x2f, 0xfd];
// one segment, the content's size in four bytes, no checksum
const DESCRIPTOR = 0xa0;
const MOST_IN_BLOCK = 1 << 17;
const ARRAYS = {
  F32: Float32Array,
  F64: Float64Array,
  I32: Int32Array,
  I64: BigInt64Array,
  I8: Int8Array,
  U8: Uint8Array,
};
const DTYPES = { F32: "float32", F64: "float64", I32: "int32", I64: "int64", I8: "int8", U8: "uint8" };

/** The message of one image: `tensors` is a map of name to { shape: [1, ...], data }, `coding` one of this page's. */
export function message(contract, tensors, coding) {
  const codings = {};
  const parts = [];
  for (const [name, tensor] of Object.entries(tensors)) {
    const coded = encode(tensor, coding);
    codings[name] = coded.coding;
    for (const [suffix, part] of Object.entries(coded.parts)) parts.push([suffix ? `${name}.${suffix}` : name, part]);
  }
  // numbers of four bytes first, so that they lie at multiples of four
  parts.sort(([, one], [, other]) => (one.dtype === "U8") - (other.dtype === "U8"));
  const header = {
    "ppfr-payload": VERSION,
    codings: JSON.stringify(codings),
    method: contract.schema.method,
    contract: contract.id,
  };
  return rawFrame(writeSafetensors(parts, header));
}

function writeSafetensors(parts, metadata) {
  const header = { __metadata__: metadata };
  let end = 0;
  for (const [name, { dtype, shape, data }] of parts) {
    header[name] = { dtype, shape, data_offsets: [end, (end += data.length)] };
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  // the tensors begin at a multiple of eight
  const length = Math.ceil(text.length / 8) * 8;
  const file = new Uint8Array(8 + length + end).fill(0x20, 8, 8 + length);
  new DataView(file.buffer).setBigUint64(0, BigInt(length), true);
  file.set(text, 8);
  let at = 8 + length;
  for (const [, { data }] of parts) {
    file.set(data, at);
    at += data.length;
  }
  return file;
}

/** The tensors of a safetensors file, { name: { dtype, shape, data } }. */
export function readSafetensors(buffer) {
  const { start, header } = safetensorsHeader(buffer);
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (!Object.hasOwn(ARRAYS, entry.dtype)) throw new Error(`${name}: this page cannot read ${entry.dtype}`);
    const [from, to] = entry.data_offsets;
    const data = new ARRAYS[entry.dtype](buffer.slice(start + from, start + to));
    tensors[name] = { dtype: DTYPES[entry.dtype], shape: entry.shape, data };
  }
  return tensors;
}

function safetensorsHeader(buffer) {
  try {
    const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
    return { start, header: JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8))) };
  } catch {
    throw new Error("this is no file of secrets; expected the secrets.safetensors of this deployment's clients");
  }
}

/** A zstd frame that holds its content uncompressed (RFC 8878, sections 3.1.1 and 3.1.1.2). */
function rawFrame(content) {
  const blocks = Math.max(1, Math.ceil(content.length / MOST_IN_BLOCK));
  const frame = new Uint8Array(9 + 3 * blocks + content.length);
  frame.set([...MAGIC, DESCRIPTOR]);
  const view = new DataView(frame.buffer);
  view.setUint32(5, content.length, true);
  let at = 9;
  for (let block = 0; block < blocks; block++) {
    const part = content.subarray(block * MOST_IN_BLOCK, (block + 1) * MOST_IN_BLOCK);
    const head = (part.length << 3) | (block === blocks - 1 ? 1 : 0);
    frame.set([head & 255, (head >> 8) & 255, head >> 16], at);
    frame.set(part, at + 3);
    at += 3 + part.length;
  }
  return frame;
}
