from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ppfr.data.protocols.fold_tests import ProtocolTest, open_test
from ppfr.data.protocols.heterogeneous import open_heterogeneous
from ppfr.data.sources import holds_splits, open_faces, open_splits
from ppfr.util.errors import DataError


def grey(path: Path, level: int, size: int = 16) -> Path:
    """A one-channel picture of one level: it tells which file was read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size, size), level, np.uint8))
    return path


LISTS = {
    # fold 1: people 1 and 2 are looked for; fold 2: 2 and 3
    "train_fold1": ["VIS/VIS_P3_1_a.png P3", "NIR/NIR_P3_1_UP_a.png P3", "VIS/VIS_P4_1_a.png P4"],
    "gallery_vis1": ["VIS/VIS_P1_1_a.png P1", "VIS/VIS_P2_1_a.png P2"],
    "probe_nir1": ["NIR/NIR_P2_1_UP_a.png P2", "NIR/NIR_P1_1_UP_a.png P1", "NIR/NIR_P1_1_UP_b.png P1"],
    "train_fold2": ["VIS/VIS_P1_1_a.png P1"],
    "gallery_vis2": ["VIS/VIS_P2_1_a.png P2", "VIS/VIS_P3_1_a.png P3"],
    "probe_nir2": ["NIR/NIR_P2_1_UP_a.png P2", "NIR/NIR_P3_1_UP_a.png P3"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folds of LAMP-HQ with four people."""
    for name, lines in LISTS.items():
        path = tmp_path / "Protocol" / ("train" if "train" in name else "test") / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    for person in (1, 2, 3, 4):
        grey(tmp_path / f"VIS/VIS_P{person}_1_a.png", 10 * person)
        for letter, more in (("a", 100), ("b", 101)):
            grey(tmp_path / f"NIR/NIR_P{person}_1_UP_{letter}.png", 10 * person + more)
    return tmp_path


def opened(root: Path, **options: object) -> ProtocolTest:
    return open_test(open_heterogeneous(f"lamp-hq:{root}"), size=16, **options)  # type: ignore[arg-type]


class TestSplits:
    def test_a_fold_trains_on_both_domains_as_one_set_of_people(self, root: Path) -> None:
        train, test = open_splits(f"lamp-hq:{root}", size=16)
        assert train.name == "LAMP-HQ fold 1 (train)" and test.name == "LAMP-HQ fold 1 (test)"
        assert train.identities == ["P3", "P4"] and train.labels.tolist() == [0, 0, 1]
        assert train.images()[:, 0, 0, 0].tolist() == [30, 130, 40]
        assert test.images()[:, 0, 0, 0].tolist() == [10, 20, 120, 110, 111]
        assert holds_splits(f"lamp-hq:{root}")
        assert open_faces(f"lamp-hq:{root},fold=2", size=16).names == [str(root / "VIS/VIS_P1_1_a.png")]

    def test_people_in_both_parts_are_refused(self, root: Path) -> None:
        grey(root / "VIS/VIS_P1_2_a.png", 1)
        with open(root / "Protocol/train/train_fold1.txt", "a") as stream:
            stream.write("VIS/VIS_P1_2_a.png P1\n")
        with pytest.raises(DataError, match=r"1 identities are in both train and test \(first: P1\)"):
            open_splits(f"lamp-hq:{root}", size=16)

    def test_missing_images_and_bad_lines_are_named_counted_and_fatal_with_strict(self, root: Path) -> None:
        (root / "NIR/NIR_P3_1_UP_a.png").unlink()
        with open(root / "Protocol/train/train_fold1.txt", "a") as stream:
            stream.write("VIS/VIS_P5\n")
        train, _ = open_splits(f"lamp-hq:{root}", size=16)
        assert len(train) == 2
        assert [(Path(path).name, reason) for path, reason in train.skipped] == [
            ("train_fold1.txt, line 4", train.skipped[0].reason),
            ("NIR_P3_1_UP_a.png", "file not found"),
        ]
        assert "not the path of an image" in train.skipped[0].reason
        with pytest.raises(DataError, match=r"LAMP-HQ fold 1 \(train\): 2 refused under strict"):
            open_splits(f"lamp-hq:{root}", size=16, strict=True)


class TestFolds:
    def test_each_image_once_and_each_fold_its_own_rows(self, root: Path) -> None:
        test = opened(root)
        assert len(test.faces) == len(set(test.faces.names)) == 7
        assert test.faces.name == "LAMP-HQ folds 1, 2 (test)"
        levels = test.faces.images()[:, 0, 0, 0]
        assert [levels[fold.gallery].tolist() for fold in test.folds] == [[10, 20], [20, 30]]
        assert [levels[fold.probes].tolist() for fold in test.folds] == [[120, 110, 111], [120, 130]]
        assert [fold.number for fold in test.folds] == [1, 2]
        assert test.left_out == []

    def test_one_fold_if_asked(self, root: Path) -> None:
        assert [fold.number for fold in opened(root, folds=[2]).folds] == [2]
        named = open_test(open_heterogeneous(f"lamp-hq:{root},fold=1"), size=16)
        assert [fold.number for fold in named.folds] == [1]
        with pytest.raises(DataError, match="no complete fold 3; found 1, 2"):
            opened(root, folds=[3])

    def test_a_missing_probe_is_left_out(self, root: Path) -> None:
        (root / "NIR/NIR_P1_1_UP_b.png").unlink()
        test = opened(root, folds=[1])
        assert len(test.folds[0].probes) == 2
        assert [Path(path).name for path, _ in test.left_out] == ["NIR_P1_1_UP_b.png"]

    def test_probes_without_a_gallery_photo_are_named_and_leave_the_fold(self, root: Path) -> None:
        (root / "VIS/VIS_P1_1_a.png").unlink()
        test = opened(root, folds=[1])
        assert len(test.folds[0].gallery) == 1 and len(test.folds[0].probes) == 1
        assert [(Path(path).name, reason) for path, reason in test.folds[0].unmatched] == [
            ("NIR_P1_1_UP_a.png", "fold 1: no gallery photo of P1"),
            ("NIR_P1_1_UP_b.png", "fold 1: no gallery photo of P1"),
        ]
        assert len(test.left_out) == 3
        assert opened(root, folds=[2]).left_out == []

    def test_strict_refuses_them(self, root: Path) -> None:
        lists = root / "Protocol/test/gallery_vis1.txt"
        lists.write_text(lists.read_text().splitlines()[1])
        with pytest.raises(DataError, match=r"2 probes refused under strict; .*no gallery photo of P1"):
            opened(root, folds=[1], strict=True)
        lists.unlink()
        with pytest.raises(DataError, match=r"fold 1: no test/gallery_vis1\.txt; refused under strict"):
            opened(root, strict=True)

    def test_a_fold_without_any_probe_left_is_an_error(self, root: Path) -> None:
        for file in (root / "NIR").iterdir():
            file.unlink()
        with pytest.raises(
            DataError, match="no probe can be looked for; of 3 probes 0 images can be used, of 2 gallery"
        ):
            opened(root, folds=[1])

    def test_an_image_with_two_identities_is_an_error(self, root: Path) -> None:
        lists = root / "Protocol/test/probe_nir2.txt"
        lists.write_text(lists.read_text().replace("a.png P2", "a.png P3"))
        with pytest.raises(DataError, match=r"NIR_P2_1_UP_a\.png is P2 in one list and P3 in another"):
            opened(root)

    @pytest.mark.parametrize("kind", ["sixteen bits", "alpha", "large", "grey"])
    def test_images_of_other_kinds_become_what_a_method_reads(self, root: Path, kind: str) -> None:
        path = str(root / "NIR/NIR_P1_1_UP_a.png")
        ramp = np.linspace(0, 1, 16)[:, None].repeat(16, axis=1)
        images = {
            "sixteen bits": (ramp * 65535).astype(np.uint16),
            "alpha": np.dstack([(ramp * 255).astype(np.uint8)] * 4),
            "large": cv2.resize((ramp * 255).astype(np.uint8), (128, 128)),
            "grey": (ramp * 255).astype(np.uint8),
        }
        cv2.imwrite(path, images[kind])
        test = opened(root, folds=[1])
        image = test.faces.image(test.faces.names.index(path))
        assert image.shape == (16, 16, 3) and image.dtype == np.uint8
        np.testing.assert_allclose(image[:, 8, :].mean(axis=1), 255 * ramp[:, 0], atol=10)
        np.testing.assert_array_equal(image[:, :, 0], image[:, :, 2])

    def test_an_image_that_is_no_aligned_crop_is_named(self, root: Path) -> None:
        cv2.imwrite(str(root / "NIR/NIR_P1_1_UP_a.png"), np.zeros((16, 20), np.uint8))
        assert "20 x 16 is not square" in opened(root, folds=[1]).left_out[0].reason
