// Pictures as arrays, resampled as in the Python client. A picture is { width, height, data }: RGBA, 8 bits.

/** A picture of one colour, black. */
export function blank(width, height) {
  const data = new Uint8ClampedArray(4 * width * height);
  for (let alpha = 3; alpha < data.length; alpha += 4) data[alpha] = 255;
  return { width, height, data };
}

/** The picture reduced to `width` x `height` by area averaging. */
export function reduced(picture, width, height) {
  const across = shares(picture.width, width);
  const down = shares(picture.height, height);
  const lines = new Float32Array(3 * width * picture.height);
  for (let y = 0, to = 0; y < picture.height; y++) {
    const row = 4 * y * picture.width;
    for (const { first, weights } of across) {
      for (let colour = 0; colour < 3; colour++) {
        let sum = 0;
        for (let at = 0; at < weights.length; at++) sum += weights[at] * picture.data[row + 4 * (first + at) + colour];
        lines[to++] = sum;
      }
    }
  }
  const small = blank(width, height);
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) {
      for (let colour = 0; colour < 3; colour++) {
        let sum = 0;
        for (let at = 0; at < weights.length; at++) sum += weights[at] * lines[3 * ((first + at) * width + x) + colour];
        small.data[4 * (y * width + x) + colour] = sum;
      }
    }
  });
  return small;
}

/** The pixels of a line that each pixel of a shorter one averages, with their weights. */
function shares(length, wanted) {
  const scale = length / wanted;
  return Array.from({ length: wanted }, (_, pixel) => {
    const [from, to] = [pixel * scale, Math.min((pixel + 1) * scale, length)];
    const first = Math.floor(from + 1e-6);
    const last = Math.min(Math.ceil(to - 1e-6), length);
    const weights = Array.from({ length: last - first }, (_, at) => {
      return (Math.min(to, first + at + 1) - Math.max(from, first + at)) / scale;
    });
    return { first, weights };
  });
}

/** The picture under a similarity [[a, b, x], [c, d, y]], `width` x `height`, bilinear; black outside of it. */
export function sampled(picture, transform, width, height) {
  const [[a, b, x0], [c, d, y0]] = inverted(transform);
  const result = blank(width, height);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      const [atX, atY] = [a * x + b * y + x0, c * x + d * y + y0];
      const [left, top] = [Math.floor(atX), Math.floor(atY)];
      const [right, below] = [atX - left, atY - top];
      for (let colour = 0; colour < 3; colour++) {
        const value = (column, row) =>
          column < 0 || row < 0 || column >= picture.width || row >= picture.height
            ? 0
            : picture.data[4 * (row * picture.width + column) + colour];
        result.data[to + colour] =
          (1 - below) * ((1 - right) * value(left, top) + right * value(left + 1, top)) +
          below * ((1 - right) * value(left, top + 1) + right * value(left + 1, top + 1));
      }
    }
  }
  return result;
}

/** A square crop at another size: averaged down, or bilinear up with its borders repeated. */
export function fitCrop(picture, size) {
  if (picture.width !== picture.height) {
    throw new Error(`${picture.width} x ${picture.height} is not square, so not an aligned crop`);
  }
  if (picture.width === size) return picture;
  if (picture.width > size) return reduced(picture, size, size);
  const scale = picture.width / size;
  const last = picture.width - 1;
  const result = blank(size, size);
  const places = Array.from({ length: size }, (_, pixel) => {
    const at = Math.min(Math.max((pixel + 0.5) * scale - 0.5, 0), last);
    return { near: Math.floor(at), far: Math.min(Math.floor(at) + 1, last), share: at - Math.floor(at) };
  });
  places.forEach((row, y) => {
    places.forEach((column, x) => {
      for (let colour = 0; colour < 3; colour++) {
        const value = (i, j) => picture.data[4 * (j * picture.width + i) + colour];
        const line = (j) => (1 - column.share) * value(column.near, j) + column.share * value(column.far, j);
        result.data[4 * (y * size + x) + colour] = (1 - row.share) * line(row.near) + row.share * line(row.far);
      }
    });
  });
  return result;
}

/** A rectangle of a picture. */
export function cut(picture, left, top, width, height) {
  const part = blank(width, height);
  for (let y = 0; y < height; y++) {
    const from = 4 * ((top + y) * picture.width + left);
    part.data.set(picture.data.subarray(from, from + 4 * width), 4 * y * width);
  }
  return part;
}

/** The picture padded with black on the right and below. */
export function padded(picture, width, height) {
  if (picture.width === width && picture.height === height) return picture;
  const larger = blank(width, height);
  for (let y = 0; y < picture.height; y++) {
    const row = picture.data.subarray(4 * y * picture.width, 4 * (y + 1) * picture.width);
    larger.data.set(row, 4 * y * width);
  }
  return larger;
}

/** The picture mirrored left to right. */
export function mirrored(picture) {
  const result = blank(picture.width, picture.height);
  for (let y = 0; y < picture.height; y++) {
    for (let x = 0; x < picture.width; x++) {
      const from = 4 * (y * picture.width + picture.width - 1 - x);
      result.data.set(picture.data.subarray(from, from + 4), 4 * (y * picture.width + x));
    }
  }
  return result;
}

/** The inverse of a similarity transform. */
export function inverted([[a, b, x], [c, d, y]]) {
  const scale = a * d - b * c;
  return [
    [d / scale, -b / scale, (b * y - d * x) / scale],
    [-c / scale, a / scale, (c * x - a * y) / scale],
  ];
}
