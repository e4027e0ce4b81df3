// Face alignment by a similarity transform of five landmarks.

import { cut, inverted, reduced, sampled } from "./pixels.js";

// the five points of ArcFace (Deng et al. 2019) in a crop of 112 x 112, from the left of the image to its right
export const TEMPLATE = [
  [38.2946, 51.6963],
  [73.5318, 51.5014],
  [56.0252, 71.7366],
  [41.5493, 92.3655],
  [70.7299, 92.2041],
];
export const CROP = 112;

/** The rotation, scale and shift that bring `points` closest to `target`, by least squares (Umeyama 1991). */
export function similarity(points, target) {
  const [here, there] = [mean(points), mean(target)];
  let [spread, turn, lift] = [0, 0, 0];
  points.forEach(([x, y], at) => {
    const [u, v] = [x - here[0], y - here[1]];
    const [s, t] = [target[at][0] - there[0], target[at][1] - there[1]];
    spread += u * u + v * v;
    turn += u * s + v * t;
    lift += u * t - v * s;
  });
  if (!(spread > 0) || !Number.isFinite(spread + turn + lift)) {
    throw new Error("landmarks are not finite or all in one place");
  }
  const [a, b] = [turn / spread, lift / spread];
  return [
    [a, -b, there[0] - a * here[0] + b * here[1]],
    [b, a, there[1] - b * here[0] - a * here[1]],
  ];
}

/** Points under a transform [[a, b, x], [c, d, y]]. */
export function moved(points, [[a, b, x], [c, d, y]]) {
  return points.map(([u, v]) => [a * u + b * v + x, c * u + d * v + y]);
}

export function mean(points) {
  const sum = points.reduce(([x, y], [u, v]) => [x + u, y + v], [0, 0]);
  return [sum[0] / points.length, sum[1] / points.length];
}

/** The face with these landmarks, upright, in a crop of 112 x 112. */
export function align(picture, landmarks) {
  return warp(picture, similarity(landmarks, TEMPLATE), CROP);
}

/** A square of `size` pixels under a similarity; a face much larger than it is first reduced by area averaging. */
export function warp(picture, transform, size) {
  const step = Math.floor(1 / Math.max(Math.hypot(transform[0][0], transform[1][0]), 1e-6));
  if (step <= 1) return sampled(picture, transform, size, size);
  const corners = [[0, 0], [size, 0], [0, size], [size, size]];
  const around = moved(corners, inverted(transform));
  const [left, width] = stretch(around.map(([x]) => x), picture.width, step);
  const [top, height] = stretch(around.map(([, y]) => y), picture.height, step);
  // whole blocks of pixels, unless the part is narrower than one
  const [across, down] = [Math.max(Math.floor(width / step), 1), Math.max(Math.floor(height / step), 1)];
  const part = cut(picture, left, top, Math.min(across * step, width), Math.min(down * step, height));
  const small = reduced(part, across, down);
  // pixel k of the small picture is the mean of pixels first + k * step ... + step - 1
  const [[a, b, x], [c, d, y]] = transform;
  const [u, v] = [left + (step - 1) / 2, top + (step - 1) / 2];
  const turned = [
    [a * step, b * step, x + a * u + b * v],
    [c * step, d * step, y + c * u + d * v],
  ];
  return sampled(small, turned, size, size);
}

/** First pixel and number of pixels of the stretch around some coordinates. */
function stretch(places, limit, step) {
  const within = (place, least, most) => Math.min(Math.max(place, least), most);
  const first = within(Math.floor(Math.min(...places)) - step, 0, limit - 1);
  const last = within(Math.ceil(Math.max(...places)) + step, first + 1, limit);
  return [first, last - first];
}
