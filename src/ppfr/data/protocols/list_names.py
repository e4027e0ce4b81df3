"""Names as the real protocols write them, for simulated data sets with any number of people and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ppfr.data.protocols.heterogeneous import Domain


@dataclass(frozen=True)
class NameStyle:
    """How a protocol names people and images, and in which proportions it has them.

    `visible_share`: of a person's images, how many are visible light; `test_share`: how many people are for testing
    (both counted in the real lists). `photo(person, number, domain)` is a path as the lists write it, with
    `identity(person)` in it; both count from 0. `gallery_photos` of each person are enrolled, None for all.
    """

    visible_share: float
    test_share: float
    identity: Callable[[int], str]
    photo: Callable[[int, int, Domain], str]
    gallery_photos: int | None = 1


def _lamp_hq_identity(person: int) -> str:
    return f"P{person + 1:04d}"


def _lamp_hq_photo(person: int, number: int, domain: Domain) -> str:
    name = _lamp_hq_identity(person)
    if domain is Domain.VIS:
        return f"VIS/VIS_{name}_{number // 6 + 1}_{'abcdef'[number % 6]}.jpg"
    view = ("DOWN", "LEFT", "RIGHT", "UP")[number // 6 % 4]
    return f"NIR/NIR_{name}_{number // 24 + 1}_{view}_{'abcdef'[number % 6]}.jpg"


def _casia_identity(person: int) -> str:
    return f"{10_000 * (person % 4) + person + 1:05d}"


def _casia_photo(person: int, number: int, domain: Domain) -> str:
    folder, suffix = ("VIS", "jpg") if domain is Domain.VIS else ("NIR", "bmp")
    return f"s{person % 4 + 1}\\{folder}\\{_casia_identity(person)}\\{number + 1:03d}.{suffix}"


def _tufts_identity(person: int) -> str:
    return str(person + 1)


def _tufts_photo(person: int, number: int, domain: Domain) -> str:
    # nine views around the face (A), then expressions (E)
    camera, series = ("RGB", "_1") if domain is Domain.VIS else ("IR", "")
    if number < 9:
        return f"TD_{camera}_A/{person + 1}/TD_{camera}_A{series}_{number}.jpg"
    return f"TD_{camera}_E/{person + 1}/TD_{camera}_E_{number - 8}.jpg"


STYLES: dict[str, NameStyle] = {
    "lamp-hq": NameStyle(0.23, 0.48, _lamp_hq_identity, _lamp_hq_photo),
    "casia-nir-vis": NameStyle(0.29, 0.50, _casia_identity, _casia_photo),
    "tufts": NameStyle(0.50, 0.20, _tufts_identity, _tufts_photo, gallery_photos=None),
}
