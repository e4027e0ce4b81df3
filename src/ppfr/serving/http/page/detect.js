// Face detection with YuNet (Wu, Peng and Yu 2023), refined on each face turned upright, as in the Python client
// (ppfr.data.detection, which explains every number here).

import { inverted, mirrored, padded, reduced } from "./pixels.js";
import { TEMPLATE, mean, moved, similarity, warp } from "./align.js";
import { Tensor } from "./runtime.js";

const STRIDES = [8, 16, 32];
const CANDIDATE = 0.4;
const SCORE = 0.6;
const OVERLAP = 0.4;
const SIDES = [640, 1280];
const LEAST = 32;
const UPRIGHT = 320;
const EXPECTED = TEMPLATE.map(([x, y]) => [2 * (x - 56) + UPRIGHT / 2, 2 * (y - 56) + UPRIGHT / 2]);
// in pixels of the upright patch: half the distance of the eyes
const FARTHEST = 0.5 * Math.hypot(EXPECTED[1][0] - EXPECTED[0][0], EXPECTED[1][1] - EXPECTED[0][1]);
const UPRIGHT_LOOKS = 2;
const SIDEWAYS = [Math.PI / 3, -Math.PI / 3];
const MIRRORED = [1, 0, 2, 4, 3];

/** The faces of a picture, the surest first: { box: [left, top, right, bottom], score, landmarks }. */
export async function detect(session, picture) {
  const longest = Math.max(picture.width, picture.height);
  const sides = SIDES.filter((side, at) => at === 0 || longest > 0.75 * side);
  const first = [];
  for (const side of sides) first.push(...(await atSide(session, picture, side)));
  const seen = [];
  for (const face of distinct(first)) seen.push(await again(session, picture, face));
  return distinct(seen.filter((face) => face.score >= SCORE));
}

async function atSide(session, picture, side) {
  const scale = Math.min(1, side / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((length) => Math.max(1, Math.round(length * scale)));
  const [backX, backY] = [picture.width / width, picture.height / height];
  const small = scale < 1 ? reduced(picture, width, height) : picture;
  const roomy = padded(small, Math.max(width, LEAST), Math.max(height, LEAST));
  return (await look(session, roomy)).map(({ box, score, landmarks }) => ({
    box: [box[0] * backX, box[1] * backY, box[2] * backX, box[3] * backY],
    score,
    landmarks: landmarks.map(([x, y]) => [(x + 0.5) * backX - 0.5, (y + 0.5) * backY - 0.5]),
  }));
}

/** The face with refined landmarks (those of the last pass that found it) and its highest score. */
async function again(session, picture, face) {
  const seen = await follow(session, picture, face, face.landmarks);
  if (seen) return seen;
  // a head on its side: the first pass places its landmarks as if it were upright
  const found = [];
  for (const turn of SIDEWAYS) found.push(await follow(session, picture, face, turned(face.landmarks, turn)));
  return found.reduce((surest, other) => (other && !(surest?.score >= other.score) ? other : surest), null) ?? face;
}

/** The face, refined from these landmarks; null where it is not found again. */
async function follow(session, picture, face, landmarks) {
  let [places, score] = [landmarks, null];
  for (let times = 0; times < UPRIGHT_LOOKS; times++) {
    const upright = similarity(places, EXPECTED);
    const seen = await lookUpright(session, warp(picture, upright, UPRIGHT));
    if (!seen.length) break;
    const points = EXPECTED.map((_, point) => mean(seen.map((one) => one.points[point])));
    places = moved(points, inverted(upright));
    score = Math.max(score ?? face.score, ...seen.map((one) => one.score));
  }
  return score === null ? null : { box: face.box, score, landmarks: places };
}

/** The face in the middle of a patch, { points, score }, as it is and mirrored, where it is found. */
async function lookUpright(session, patch) {
  const seen = [];
  for (const turn of [false, true]) {
    const faces = (await look(session, turn ? mirrored(patch) : patch)).map(({ landmarks, score }) => {
      const points = turn ? MIRRORED.map((at) => landmarks[at]).map(([x, y]) => [UPRIGHT - 1 - x, y]) : landmarks;
      return { points, score, apart: distance(points, EXPECTED) };
    });
    faces.sort((one, other) => one.apart - other.apart);
    if (faces.length && faces[0].apart <= FARTHEST) seen.push(faces[0]);
  }
  return seen;
}

/** Points turned around their mean by an angle. */
function turned(points, angle) {
  const [[x, y], cosine, sine] = [mean(points), Math.cos(angle), Math.sin(angle)];
  return moved(points, [
    [cosine, -sine, x - cosine * x + sine * y],
    [sine, cosine, y - sine * x - cosine * y],
  ]);
}

function distance(points, others) {
  const apart = points.map(([x, y], at) => Math.hypot(x - others[at][0], y - others[at][1]));
  return apart.reduce((sum, one) => sum + one, 0) / apart.length;
}

/** The network's detections in a picture, at its own size. */
async function look(session, picture) {
  const [width, height] = [picture.width, picture.height].map((length) => Math.ceil(length / 32) * 32);
  const roomy = padded(picture, width, height);
  const pixels = new Float32Array(3 * width * height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    // blue, green, red
    for (let colour = 0; colour < 3; colour++) pixels[colour * width * height + pixel] = roomy.data[4 * pixel + 2 - colour];
  }
  const input = new Tensor("float32", pixels, [1, 3, height, width]);
  const found = await session.run({ [session.inputNames[0]]: input });
  return distinct(STRIDES.flatMap((stride) => decode(found, stride, width / stride)));
}

function decode(found, stride, columns) {
  const [sure, there, box, points] = ["cls", "obj", "bbox", "kps"].map((name) => found[`${name}_${stride}`].data);
  const faces = [];
  for (let cell = 0; cell < sure.length; cell++) {
    const score = Math.sqrt(unit(sure[cell]) * unit(there[cell]));
    if (score < CANDIDATE) continue;
    const [column, row] = [cell % columns, Math.floor(cell / columns)];
    const [x, y] = [(column + box[4 * cell]) * stride, (row + box[4 * cell + 1]) * stride];
    const [halfWidth, halfHeight] = [2, 3].map((at) => (Math.exp(box[4 * cell + at]) * stride) / 2);
    const landmarks = TEMPLATE.map((_, at) => {
      return [(points[10 * cell + 2 * at] + column) * stride, (points[10 * cell + 2 * at + 1] + row) * stride];
    });
    faces.push({ box: [x - halfWidth, y - halfHeight, x + halfWidth, y + halfHeight], score, landmarks });
  }
  return faces;
}

const unit = (value) => Math.min(Math.max(value, 0), 1);

/** Faces, the surest first, without those that overlap a surer one too much. */
function distinct(faces) {
  const kept = [];
  for (const face of [...faces].sort((one, other) => other.score - one.score)) {
    if (kept.every((surer) => overlap(surer.box, face.box) <= OVERLAP)) kept.push(face);
  }
  return kept;
}

function overlap(one, other) {
  const width = Math.min(one[2], other[2]) - Math.max(one[0], other[0]);
  const height = Math.min(one[3], other[3]) - Math.max(one[1], other[1]);
  const shared = Math.max(width, 0) * Math.max(height, 0);
  return shared / Math.max(area(one) + area(other) - shared, 1e-12);
}

export const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
