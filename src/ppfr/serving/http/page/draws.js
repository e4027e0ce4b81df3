// Random draws of a query, from the browser's cryptographic generator.

const WORDS = 1024;
let words = new Uint32Array(0);

/** A uniform whole number of 32 bits. */
function word() {
  if (words.length === 0) words = crypto.getRandomValues(new Uint32Array(WORDS));
  const last = words[words.length - 1];
  // every number is used once
  words = words.subarray(0, words.length - 1);
  return last;
}

/** A uniform whole number in 0 .. of - 1 (rejection sampling). */
export function choice(of) {
  const fair = 2 ** 32 - (2 ** 32 % of);
  for (;;) {
    const drawn = word();
    if (drawn < fair) return drawn % of;
  }
}

/** A uniform permutation of 0 .. count - 1 (Fisher and Yates). */
export function permutation(count) {
  const order = Array.from({ length: count }, (_, at) => at);
  for (let last = count - 1; last > 0; last--) {
    const other = choice(last + 1);
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

/** A uniform number within (0, 1), of 52 bits. */
function unit() {
  return (word() * 2 ** 20 + (word() >>> 12) + 0.5) * 2 ** -52;
}

function laplace() {
  const size = -Math.log(unit());
  return word() & 1 ? size : -size;
}

function normal() {
  return Math.sqrt(-2 * Math.log(unit())) * Math.cos(2 * Math.PI * unit());
}

const KINDS = {
  choice: (draw, count) => Array.from({ length: count }, () => choice(draw.of)),
  permutation: (draw) => Array.from({ length: draw.shape[0] }, () => permutation(draw.shape[1])).flat(),
  laplace: (_, count) => Array.from({ length: count }, laplace),
  normal: (_, count) => Array.from({ length: count }, normal),
};

/** One draw of the distribution that protect.json describes: { dtype, shape, data }. */
export function sample(draw) {
  if (!Object.hasOwn(KINDS, draw.kind)) throw new Error(`this page knows no draw of kind "${draw.kind}"`);
  const count = draw.shape.reduce((product, length) => product * length, 1);
  const values = KINDS[draw.kind](draw, count);
  const whole = draw.kind === "choice" || draw.kind === "permutation";
  return whole
    ? { dtype: "int64", shape: draw.shape, data: BigInt64Array.from(values, BigInt) }
    : { dtype: "float32", shape: draw.shape, data: Float32Array.from(values) };
}
