"""Pictures of attacked people: photo, payload and recovered image, saved beside the card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppfr.auditing.card import Card, load_card
from ppfr.util.errors import DataError
from ppfr.util.files import atomic_path

Images = npt.NDArray[np.uint8]

EVIDENCE_FILE = "evidence.npz"


@dataclass(frozen=True)
class Evidence:
    """What one attack recovered of some people, as RGB uint8 images.

    `photos` and `recovered` are (N,H,W,3), `sent` (N,S,S,3) are the payloads as drawn by `payload_picture`, `caption`
    says how. `labels` (N) say why each was chosen. `likeness` (N) compares recovery and photo: `measure` is "cosine" of
    the judge's embeddings, or "SSIM" without a judge. Without a recovery `title` and `measure` are empty.
    """

    title: str
    labels: tuple[str, ...]
    photos: Images
    sent: Images
    caption: str
    recovered: Images | None = None
    likeness: tuple[float, ...] = ()
    measure: str = ""


@dataclass(frozen=True)
class Audit:
    """The card, and the pictures that go with it: faces, which are personal data and belong in no repository."""

    card: Card
    evidence: Sequence[Evidence] = ()

    def save(self, folder: Path | str) -> Path:
        """Write `evidence.npz`, then `card.json`, into a folder, each atomically; returns the card's path."""
        if self.evidence:
            save_evidence(self.evidence, folder)
        return self.card.save(folder)


def load_audit(folder: Path | str) -> Audit:
    """Read a card and, where there are any, its pictures from a folder or from the card's path in it."""
    card = load_card(folder)
    place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    return Audit(card, load_evidence(place) if (place / EVIDENCE_FILE).is_file() else ())


def save_evidence(evidence: Sequence[Evidence], folder: Path | str) -> None:
    """Write pictures as one compressed NumPy archive."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    texts = []
    for index, one in enumerate(evidence):
        pictures = {"photos": one.photos, "sent": one.sent, "recovered": one.recovered}
        arrays |= {f"{name}{index}": images for name, images in pictures.items() if images is not None}
        texts.append({key: value for key, value in vars(one).items() if key not in pictures})
    with atomic_path(Path(folder) / EVIDENCE_FILE) as path, open(path, "wb") as stream:
        np.savez_compressed(stream, texts=np.array(json.dumps(texts)), **arrays)  # type: ignore[arg-type]


def load_evidence(folder: Path | str) -> list[Evidence]:
    """Read the pictures that `save_evidence` wrote; raises DataError for another file of this name."""
    path = Path(folder) / EVIDENCE_FILE
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [
                Evidence(
                    title=text["title"],
                    labels=tuple(text["labels"]),
                    photos=arrays[f"photos{index}"],
                    sent=arrays[f"sent{index}"],
                    caption=text["caption"],
                    recovered=arrays.get(f"recovered{index}"),
                    likeness=tuple(text["likeness"]),
                    measure=text["measure"],
                )
                for index, text in enumerate(json.loads(str(arrays["texts"])))
            ]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no pictures of an audit ({error}); remove it, or audit the run again") from error


def refuse_repository(folder: Path | str, *, synthetic: bool) -> None:
    """Raise DataError for real faces and a folder inside a git work tree, where they would be committed by accident."""
    place = Path(folder).absolute()
    for above in () if synthetic else (place, *place.parents):
        if (above / ".git").exists():
            raise DataError(
                f"{folder} lies inside the git repository {above}, and the page shows faces, which are personal data; "
                "choose a folder outside of any repository"
            )


__all__ = ["EVIDENCE_FILE", "Audit", "Evidence", "load_audit", "load_evidence", "refuse_repository", "save_evidence"]
