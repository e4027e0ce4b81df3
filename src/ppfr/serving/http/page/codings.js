// Codings of a tensor as in ppfr.wire.codings: float32 (every bit), float16, int8 (256 levels a channel).

/** The coding that this page writes for the contract's; it cannot compute `dct` and writes float16 instead. */
export function codingFor(wanted) {
  const [kind] = wanted.split(":");
  if (!["float32", "float16", "int8", "dct"].includes(kind)) throw new Error(`this page knows no coding "${wanted}"`);
  return kind === "dct" ? "float16" : kind;
}

/** A tensor { shape: [1, ...], data } coded: { coding, parts: { suffix: { dtype, shape, data } } }. */
export function encode(tensor, coding) {
  // whole numbers keep every bit
  if (coding === "float32" || !(tensor.data instanceof Float32Array)) return { coding: "float32", parts: { "": shuffledBytes(tensor) } };
  if (coding === "int8") return { coding, parts: eightBits(tensor) };
  return { coding, parts: { "": shuffledBytes({ shape: tensor.shape, data: halves(tensor.data) }) } };
}

/** Shuffled bytes: the first bytes of all values, then their second bytes ...: (1, bytes of a value, ...). */
function shuffledBytes({ shape, data }) {
  const size = data.BYTES_PER_ELEMENT;
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const shuffled = new Uint8Array(bytes.length);
  for (let place = 0, to = 0; place < size; place++) {
    for (let from = place; from < bytes.length; from += size) shuffled[to++] = bytes[from];
  }
  return { dtype: "U8", shape: [1, size, ...shape.slice(1)], data: shuffled };
}

/** 256 levels between the least and the greatest value of each channel, in single precision as in Python. */
function eightBits({ shape, data }) {
  const channels = shape[1];
  const size = data.length / channels;
  const levels = new Uint8Array(data.length);
  const [low, step] = [new Float32Array(channels), new Float32Array(channels)];
  for (let channel = 0; channel < channels; channel++) {
    const values = data.subarray(channel * size, (channel + 1) * size);
    const [least, width] = range(values);
    low[channel] = least;
    step[channel] = width / 255;
    const divisor = step[channel] || 1;
    for (let at = 0; at < size; at++) {
      const level = roundToEven(Math.fround(Math.fround(values[at] - least) / divisor));
      levels[channel * size + at] = Math.min(level, 255);
    }
  }
  const along = [1, channels];
  return {
    "": { dtype: "U8", shape, data: levels },
    low: { dtype: "F32", shape: along, data: new Uint8Array(low.buffer) },
    step: { dtype: "F32", shape: along, data: new Uint8Array(step.buffer) },
  };
}

/** The least value, and the difference of the greatest from it. */
function range(values) {
  let [least, greatest] = [Infinity, -Infinity];
  for (const value of values) {
    least = Math.min(least, value);
    greatest = Math.max(greatest, value);
  }
  const width = Math.fround(greatest - least);
  if (!Number.isFinite(width)) throw new Error("values that are not finite cannot be coded as int8");
  return [least, width];
}

function roundToEven(value) {
  const whole = Math.floor(value);
  const rest = value - whole;
  return whole + (rest > 0.5 || (rest === 0.5 && whole % 2 === 1) ? 1 : 0);
}

/** Half precision (IEEE 754 binary16) of each value, rounded to the nearest, ties to even. */
function halves(values) {
  return Uint16Array.from(new Uint32Array(values.buffer, values.byteOffset, values.length), half);
}

const single = new Float32Array(1);
const singleBits = new Uint32Array(single.buffer);

function half(bits) {
  const sign = (bits >>> 16) & 0x8000;
  const size = bits & 0x7fffffff;
  // from 65520 on values round to infinity
  if (size >= 0x477ff000) throw new Error("values beyond 65504 cannot be coded as float16; export with float32");
  if (size >= 0x38800000) return sign | ((size + 0xfff + ((size >>> 13) & 1) - 0x38000000) >>> 13);
  // below 2^-14 steps are 2^-24, as those of single precision are from 0.5 on
  singleBits[0] = size;
  single[0] += 0.5;
  return sign | (singleBits[0] - 0x3f000000);
}
