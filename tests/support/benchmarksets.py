"""Small benchmarks in the layouts of the real ones, of synthetic faces."""

from __future__ import annotations

import json
import struct
from functools import cache
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from ppfr.data.detection.align import template
from ppfr.data.sources import open_faces

PEOPLE, IMAGES = 6, 8
_SCALE, _ANGLE, _SHIFT = 1.5, 0.2, (40, 30)


@cache
def faces() -> np.ndarray:
    """Aligned faces (PEOPLE * IMAGES, 112, 112, 3), one person after the other."""
    return open_faces(f"synthetic:people={PEOPLE},images={IMAGES}").images()


def loose(image: np.ndarray, size: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """A face turned, enlarged and moved in a larger picture, and its landmarks (5, 2)."""
    cos, sin = _SCALE * np.cos(_ANGLE), _SCALE * np.sin(_ANGLE)
    matrix = np.array([[cos, -sin, _SHIFT[0] + 20], [sin, cos, _SHIFT[1]]])
    return cv2.warpAffine(image, matrix, (size, size)), template() @ matrix[:, :2].T + matrix[:, 2]


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])


def write_ijb(root: Path, prefix: str = "ijbb", *, searches: bool = True) -> Path:
    """Two templates a person of four images, two of them frames of one video; all pairs; galleries of half each."""
    names, points, medias, pairs = [], [], [], []
    for number, image in enumerate(faces()):
        crop, landmarks = loose(image)
        name = f"{number + 1}.jpg"
        names.append(name)
        write_image(root / "loose_crop" / name, crop)
        numbers = " ".join(f"{value:.4f}" for value in landmarks.ravel())
        points.append(f"{name} {numbers} {0.9 + number / 1000:.4f}\n")
        medias.append(f"{name} {10 * (number // 4) + 10} {number if number % 4 < 2 else 1000 + number // 4}\n")
    templates = {10 * t + 10: t // 2 for t in range(2 * PEOPLE)}
    for first, second in combinations(templates, 2):
        pairs.append(f"{first} {second} {int(templates[first] == templates[second])}\n")
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / f"{prefix}_name_5pts_score.txt").write_text("".join(points))
    (meta / f"{prefix}_face_tid_mid.txt").write_text("".join(medias))
    (meta / f"{prefix}_template_pair_label.txt").write_text("".join(pairs))
    if searches:
        galleries = {"S1": range(PEOPLE // 2), "S2": range(PEOPLE // 2, PEOPLE)}
        head = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
        for gallery, people in galleries.items():
            lines = "".join(f"{20 * p + 10},{100 + p},{i}.jpg\n" for p in people for i in range(4))
            (meta / f"{prefix}_1N_gallery_{gallery}.csv").write_text(head + lines)
        lines = "".join(f"{20 * p + 20},{100 + p},{i}.jpg\n" for p in range(PEOPLE) for i in range(4))
        (meta / f"{prefix}_1N_probe_mixed.csv").write_text(head + lines)
    return root


def write_rfw(root: Path, *, aligned: bool, groups: tuple[str, ...] = ("African", "Indian")) -> Path:
    """Ten pairs a group, tabs in one list and spaces in the other."""
    images = faces()
    for group, gap in zip(groups, "\t ", strict=False):
        lines, points = [], []
        for person in range(5):
            for number in (1, 2):
                image = images[IMAGES * person + number - 1]
                crop, landmarks = (image, template()) if aligned else loose(image, 400)
                name = f"m.0{person}/m.0{person}_{number:04d}.jpg"
                write_image(root / "data" / group / name, crop)
                numbers = "\t".join(f"{value:.3f}" for value in landmarks.ravel())
                points.append(f"/somewhere/test/data/{group}/{name}\t0\t{numbers}\n")
            lines.append(gap.join((f"m.0{person}", "1", "2")) + "\n")
            lines.append(gap.join((f"m.0{person}", "1", f"m.0{(person + 1) % 5}", "2")) + "\n")
        folder = root / "txts" / group
        folder.mkdir(parents=True)
        (folder / f"{group}_pairs.txt").write_text("".join(lines))
        if not aligned:
            (folder / f"{group}_lmk.txt").write_text("".join(points))
    return root


def write_carray(root: Path, name: str, images: np.ndarray, same: list[bool], *, rows: int = 4) -> Path:
    """Images (2 P, H, W, 3) RGB as bcolz writes them for face.evoLVe, `rows` a chunk."""
    import blosc

    values = ((images[..., ::-1].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).astype(np.float32)
    folder = root / name
    for part in ("meta", "data"):
        (folder / part).mkdir(parents=True)
    sizes = {"shape": list(values.shape), "nbytes": values.nbytes, "cbytes": 0}
    storage = {
        "dtype": "float32",
        "cparams": {"clevel": 5, "shuffle": 1, "cname": "lz4", "quantize": 0},
        "chunklen": rows,
        "expectedlen": len(values),
        "dflt": 0.0,
    }
    (folder / "meta" / "sizes").write_text(json.dumps(sizes) + "\n")
    (folder / "meta" / "storage").write_text(json.dumps(storage) + "\n")
    for number, start in enumerate(range(0, len(values), rows)):
        packed = blosc.compress(values[start : start + rows].tobytes(), 4, 5, blosc.SHUFFLE, "lz4")
        header = b"blpk" + struct.pack("<B3xq", 1, 1)
        (folder / "data" / f"__{number}.blp").write_bytes(header + packed)
    np.save(root / f"{name}_list.npy", np.array(same))
    return folder
