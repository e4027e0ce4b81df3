"""Draw docs/pictures: one synthetic face, and the payload that each method makes of it.

    python docs/pictures.py [METHOD ...]

Every method is first trained briefly on synthetic faces, because the output of an untrained client means little.
Results are repeatable on one machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import torch

from ppfr.auditing.payload_pictures import describe_payload, payload_picture
from ppfr.data.images import Images, to_tensor
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.experiments.workbench import Workbench
from ppfr.methods import method_names
from ppfr.util.files import atomic_path

FOLDER = Path(__file__).parent / "pictures"
DATA = "synthetic:people=40,images=4"
SIDE, QUALITY = 224, 75
SMALL: dict[str, Any] = {
    "backbone": {"name": "mobilefacenet", "width": 0.25, "embedding_size": 32},
    "training": {"batch_size": 16, "epochs": 2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "avih": {"iterations": 200},
    "peep": {"components": 64},
    "minusface": {"generator_width": 0.25},
    "privacyhfr": {"pattern": "dra", "iterations": 200},
}


def draw(name: str, face: Images, runs: Path) -> Images:
    """The payload of `face` (1,112,112,3) as a picture, for the method `name` after a short training."""
    bench = Workbench(DATA, runs, runs / "cache")
    method = bench.train(name, None, overrides={**SMALL, "options": OPTIONS.get(name, {})})
    payload = method.protect(to_tensor(face), torch.Generator().manual_seed(0))
    print(f"{name}: {describe_payload(payload, size=SIDE)}", flush=True)
    return payload_picture(payload, size=SIDE)


def save(path: Path, picture: Images) -> None:
    """Write an RGB picture as WebP; as PNG, noise would take ten times the space."""
    with atomic_path(path) as temporary:
        _, encoded = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        temporary.write_bytes(encoded.tobytes())


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    face = SyntheticFaces(people=3, images=1, part="pictures").images([1])
    save(FOLDER / "clear.webp", cv2.resize(face[0], (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    with tempfile.TemporaryDirectory() as runs:
        for name in names or method_names():
            save(FOLDER / f"{name}.webp", draw(name, face, Path(runs)))


if __name__ == "__main__":
    main(sys.argv[1:])
