from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppfr.data import simulated_protocol as simulatedlayout
from ppfr.data.faceset import FaceSet
from ppfr.data.images import read_image
from ppfr.data.protocols.fold_tests import open_test
from ppfr.data.protocols.heterogeneous import PROTOCOLS, Domain, Heterogeneous, open_heterogeneous
from ppfr.data.simulated_protocol import SimulatedProtocol, plan_layout, write_layout
from ppfr.data.sources import open_splits
from ppfr.data.synthetic.sensors import simulate
from ppfr.util.errors import DataError

FACES = "synthetic:people=8,images=7"
PEOPLE = 8 + 20


def opened(protocol: str, out: Path) -> Heterogeneous:
    return open_heterogeneous(f"{protocol}:{out}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A simulated data set of each protocol, written once."""
    written: dict[str, Path] = {}

    def write(protocol: str) -> Path:
        if protocol not in written:
            written[protocol] = tmp_path_factory.mktemp(protocol)
            write_layout(plan_layout(FACES, protocol), written[protocol])
        return written[protocol]

    return write


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
class TestMade:
    def test_every_line_of_every_list_has_its_image(self, protocol: str, made: Callable[[str], Path]) -> None:
        out = made(protocol)
        found = opened(protocol, out)
        assert found.folds == (tuple(range(1, 11)) if protocol != "tufts" else (1,))
        for fold in {1, found.folds[-1]}:
            test = open_test(found, [fold], strict=True)
            train, _ = open_splits(f"{protocol}:{out},fold={fold}", strict=True)
            people = {test.faces.identities[label] for label in test.faces.labels}
            assert not people & set(train.identities)
            assert len(people) + len(train.identities) == PEOPLE
            assert train.name == f"simulated {PROTOCOLS[protocol].title} fold {fold} (train)"

    def test_the_first_fold_divides_people_as_the_source_does(self, protocol: str, made: Callable[[str], Path]) -> None:
        layout = plan_layout(FACES, protocol)
        parts = {path: part for path, (part, _, _) in layout.images.items()}
        found = opened(protocol, made(protocol))
        assert {parts[entry.path] for entry in found.read("train", 1).entries} == {0}
        assert {parts[entry.path] for part in ("gallery", "probe") for entry in found.read(part, 1).entries} == {1}  # type: ignore[arg-type]

    def test_no_photo_is_used_twice(self, protocol: str, made: Callable[[str], Path]) -> None:
        layout = plan_layout(FACES, protocol)
        used = [(part, row) for part, row, _ in layout.images.values()]
        assert len(set(used)) == len(used) == PEOPLE * 7

    def test_files_are_what_their_paths_say(self, protocol: str, made: Callable[[str], Path]) -> None:
        out, layout = made(protocol), plan_layout(FACES, protocol)
        seen = set()
        for path, (part, row, domain) in list(layout.images.items())[:14]:
            photo = layout.sets[part].image(row)
            image = read_image(out / path)
            if domain is Domain.VIS:
                # the picture is noisy, and JPEG halves the resolution of colours
                assert np.abs(image.astype(int) - photo).mean() < 10
            else:
                wanted = simulate(photo, domain, np.random.default_rng([0, part, row, 1]))
                assert np.abs(image.astype(int) - wanted[:, :, None]).mean() < 4
            seen.add(domain)
        assert seen == {Domain.VIS, PROTOCOLS[protocol].probe_domain}

    def test_the_mark_says_what_was_done(self, protocol: str, made: Callable[[str], Path]) -> None:
        mark = json.loads((made(protocol) / "SIMULATED.json").read_text())
        assert mark["protocol"] == protocol and mark["seed"] == 0 and mark["faces"] == FACES
        assert mark["people"] == PEOPLE and mark["images"] == PEOPLE * 7
        assert "simulated" in mark["what"] and mark["transform"]["version"] == 1


class TestFolds:
    def test_folds_differ_in_people_and_in_gallery_photos(self, made: Callable[[str], Path]) -> None:
        found = opened("casia-nir-vis", made("casia-nir-vis"))
        galleries = [{entry.path for entry in found.read("gallery", fold).entries} for fold in found.folds]
        people = [frozenset(entry.identity for entry in found.read("gallery", fold).entries) for fold in found.folds]
        assert len(set(people)) == 10
        # half of the people are tested, each with one gallery photo, not always the same
        assert {len(gallery) for gallery in galleries[1:]} == {14} == {len(group) for group in people[1:]}
        assert len(set.union(*galleries)) > PEOPLE

    def test_a_seed_draws_other_folds_and_the_same_seed_the_same(self) -> None:
        first, again, other = (plan_layout(FACES, "lamp-hq", seed=seed) for seed in (1, 1, 2))
        assert first.lists == again.lists and first.images == again.images
        assert first.lists != other.lists and first.images != other.images

    def test_paths_and_lines_look_like_the_real_ones(self) -> None:
        lists = {protocol: plan_layout(FACES, protocol).lists for protocol in PROTOCOLS}
        assert lists["lamp-hq"]["test/gallery_vis1.txt"].splitlines()[0].startswith(b"VIS/VIS_P0009_1_")
        assert lists["lamp-hq"]["test/probe_nir1.txt"].splitlines()[0] == b"NIR/NIR_P0009_1_DOWN_a.jpg P0009"
        assert lists["casia-nir-vis"]["nir_train_1.txt"].splitlines()[0] == rb"s1\NIR\00001\001.bmp"
        assert lists["casia-nir-vis"]["vis_gallery_10.txt"].splitlines()[0].endswith(b".jpg")
        assert lists["tufts"]["probe.txt"].splitlines()[0] == b"TD_IR_A/9/TD_IR_A_0.jpg"
        assert lists["tufts"]["gallery_all.txt"].splitlines()[0] == b"TD_RGB_A/9/TD_RGB_A_1_0.jpg"
        assert len(lists["tufts"]["gallery_all.txt"].splitlines()) > 20

    def test_without_a_division_of_its_own_a_source_is_divided_by_the_seed(self, tmp_path: Path) -> None:
        train, _ = open_splits(FACES)
        layout = plan_layout(folder(tmp_path / "faces", train), "lamp-hq")
        assert layout.description["fold_1_divides_as_the_source"] is False
        assert len(layout.lists["test/gallery_vis1.txt"].splitlines()) == round(0.48 * 8)


def folder(path: Path, faces: FaceSet) -> Path:
    import cv2

    for row, name in enumerate(faces.names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path / f"{name}.png"), faces.image(row)[:, :, ::-1])
    return path


class TestWriting:
    def test_it_goes_on_where_it_was_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = plan_layout(FACES, "casia-nir-vis")
        monkeypatch.setattr(simulatedlayout, "_CHUNK", 16)
        calls: list[tuple[int, int]] = []

        def stop(done: int, total: int) -> None:
            calls.append((done, total))
            if done >= 48:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_layout(layout, tmp_path, stop)
        assert calls == [(16, 196), (32, 196), (48, 196)]
        assert (tmp_path / "SIMULATED.json").is_file() and not (tmp_path / "Protocol").exists()
        torn = next(tmp_path.rglob("*.jpg"))
        torn.write_bytes(b"")
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*g")}
        assert write_layout(layout, tmp_path) == 196 - 48 + 1
        assert [path for path, time in before.items() if path.stat().st_mtime_ns != time] == [torn]
        whole = tmp_path / "whole"
        write_layout(layout, whole)
        for path in layout.images:
            assert (tmp_path / path).read_bytes() == (whole / path).read_bytes()
        assert write_layout(layout, whole) == 0

    def test_it_never_mixes_with_other_images(self, tmp_path: Path) -> None:
        (tmp_path / "VIS").mkdir()
        with pytest.raises(DataError, match="is not empty and no simulated data set"):
            write_layout(plan_layout(FACES, "lamp-hq"), tmp_path)

    def test_another_simulation_is_refused(self, made: Callable[[str], Path]) -> None:
        with pytest.raises(DataError, match=r"another simulated data set \(seed differ\)"):
            write_layout(plan_layout(FACES, "lamp-hq", seed=5), made("lamp-hq"))

    def test_too_few_people_or_photos(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="0 people to train and 0 to test with two photos or more"):
            plan_layout("synthetic:people=8,images=1", "lamp-hq")
        with pytest.raises(DataError, match="no protocol 'lfw'"):
            plan_layout(FACES, "lfw")


@pytest.fixture(scope="module")
def on_real_lists(shared: Path) -> SimulatedProtocol:
    return plan_layout(FACES, "lamp-hq", lists=shared / "protocols" / "LAMP-HQ")


class TestRealLists:
    @pytest.mark.slow
    def test_lists_stay_as_they_are_and_the_first_lines_get_images(
        self, on_real_lists: SimulatedProtocol, shared: Path, tmp_path: Path
    ) -> None:
        write_layout(on_real_lists, tmp_path)
        for name in ("test/gallery_vis1.txt", "test/probe_nir1.txt", "train/train_fold1.txt"):
            real = shared / "protocols" / "LAMP-HQ" / "Protocol" / name
            assert (tmp_path / "Protocol" / name).read_bytes() == real.read_bytes()
        # 20 test people, each with 2 visible photos of which one is in the gallery, and 5 probes
        test = open_test(opened("lamp-hq", tmp_path))
        fold = test.folds[0]
        assert len(fold.gallery) == 20 and len(fold.probes) == 100
        assert len(test.left_out) == (273 - 20) + (27263 - 100) + (273 - 20)
        first = [
            line.split()[1] for line in (tmp_path / "Protocol/test/gallery_vis1.txt").read_text().splitlines()[:20]
        ]
        assert sorted(first) == test.faces.identities
        train, _ = open_splits(f"lamp-hq:{tmp_path}")
        assert len(train.identities) == 8 and len(train) == 56

    def test_people_keep_their_role(self, on_real_lists: SimulatedProtocol, shared: Path) -> None:
        real = opened("lamp-hq", shared / "protocols" / "LAMP-HQ")
        tested = {entry.identity for entry in real.read("gallery", 1).entries}
        for path, (part, _, _) in on_real_lists.images.items():
            assert (path.split("_")[1] in tested) == (part == 1)
