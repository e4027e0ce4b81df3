"""Draw docs/protect.png: synthetic faces, what two methods send of them, and what linear inversion gets back.

    python examples/readme_picture.py docs/protect.png

The clients need no training for this: what they send is fixed by their transforms (DuetFace's attention maps apart).
"""

from __future__ import annotations

import sys

import torch

import ppfr
from ppfr.attacks.base import create_attack
from ppfr.auditing.payload_pictures import payload_picture
from ppfr.data.images import to_tensor
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.reports.pictures import contact_sheet, save_png


def main(path: str) -> None:
    photographs = SyntheticFaces(6, 3, seed=11, part="test").images([0, 3, 6, 9, 12])
    images = to_tensor(photographs)
    public = to_tensor(SyntheticFaces(60, 4, seed=5).images())
    rows, labels = [list(photographs)], ["photograph"]
    for name in ("partialface", "duetface"):
        method = ppfr.create(name, "mobilefacenet", width=0.25, embedding_size=32)
        with torch.no_grad():
            payload = method.protect(images, torch.Generator().manual_seed(3))
            recovered = create_attack("linear-inversion")(method, payload, faces=public).images
        rows.append([payload_picture(payload, row) for row in range(len(images))])
        rows.append(list((recovered * 255).round().byte().permute(0, 2, 3, 1).numpy()))
        labels += [f"{method.info.title}: what is sent", f"{method.info.title}: recovered"]
    save_png(path, contact_sheet(rows, labels, [], cell=150))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "protect.png")
