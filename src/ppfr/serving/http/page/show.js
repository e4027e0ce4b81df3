// Draws photos and payloads on the page.

const MOST_CHANNELS = 36;
const SHOWN_BYTES = 512;

/** Show a picture in a canvas, reduced to at most `most` pixels a side. */
export function showPicture(canvas, picture, most = 480) {
  const scale = Math.min(1, most / Math.max(picture.width, picture.height));
  [canvas.width, canvas.height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  const whole = new OffscreenCanvas(picture.width, picture.height);
  whole.getContext("2d").putImageData(new ImageData(picture.data, picture.width, picture.height), 0, 0);
  canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
}

/** Show a payload's channels side by side, each stretched to its own range; returns a sentence about them. */
export function showPayload(canvas, tensors) {
  const all = Object.values(tensors).flatMap(channelsOf);
  const shown = all.slice(0, MOST_CHANNELS);
  const [width, height] = [Math.max(...shown.map((one) => one.width)), Math.max(...shown.map((one) => one.height))];
  const columns = Math.ceil(Math.sqrt(shown.length));
  canvas.width = columns * (width + 2);
  canvas.height = Math.ceil(shown.length / columns) * (height + 2);
  const context = canvas.getContext("2d");
  shown.forEach((channel, at) => {
    context.putImageData(grey(channel), (at % columns) * (width + 2), Math.floor(at / columns) * (height + 2));
  });
  const rest = all.length > shown.length ? `, the first ${shown.length} of them shown` : "";
  return `${all.length} ${all.length === 1 ? "channel" : "channels"}${rest}, each stretched to its own range`;
}

/** The channels of a tensor (1, C, H, W); one of fewer axes is a single line. */
function channelsOf({ shape, data }) {
  const [channels, height, width] = shape.length === 4 ? shape.slice(1) : [1, 1, data.length];
  const size = height * width;
  return Array.from({ length: channels }, (_, at) => ({ width, height, data: data.subarray(at * size, (at + 1) * size) }));
}

function grey({ width, height, data }) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of data) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const picture = new ImageData(width, height);
  for (let pixel = 0; pixel < data.length; pixel++) {
    const level = high > low ? (255 * (data[pixel] - low)) / (high - low) : 128;
    picture.data.set([level, level, level, 255], 4 * pixel);
  }
  return picture;
}

/** Show the first bytes as a hex dump. */
export function showBytes(element, bytes) {
  const lines = [];
  for (let at = 0; at < Math.min(bytes.length, SHOWN_BYTES); at += 16) {
    const row = [...bytes.subarray(at, at + 16)];
    const numbers = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const letters = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${numbers.padEnd(47)}  ${letters}`);
  }
  if (bytes.length > SHOWN_BYTES) lines.push(`... ${(bytes.length - SHOWN_BYTES).toLocaleString("en")} more bytes`);
  element.textContent = lines.join("\n");
}
