from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.images import IMAGE_SUFFIXES
from ppfr.data.protocols.heterogeneous import (
    PROTOCOLS,
    Domain,
    ListedImage,
    is_heterogeneous,
    open_heterogeneous,
    parse_line,
    parse_list,
)
from ppfr.util.errors import DataError

LAMP, CASIA, TUFTS = PROTOCOLS["lamp-hq"], PROTOCOLS["casia-nir-vis"], PROTOCOLS["tufts"]
BOTH = {Domain.VIS, Domain.NIR}


def write_lists(root: Path, files: dict[str, str], folder: str = "Protocol") -> Path:
    for name, text in files.items():
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


def lamp_lists(fold: int) -> dict[str, str]:
    return {
        f"train/train_fold{fold}.txt": "NIR/NIR_P0002_1_UP_a.jpg P0002\nVIS/VIS_P0002_1_a.jpg P0002\n",
        f"test/gallery_vis{fold}.txt": "VIS/VIS_P0001_1_a.jpg P0001\n",
        f"test/probe_nir{fold}.txt": "NIR/NIR_P0001_1_UP_a.jpg P0001\n",
    }


class TestLines:
    @pytest.mark.parametrize(
        ("protocol", "line", "expected"),
        [
            (LAMP, "NIR/NIR_FP0002_1_DOWN_a.jpg FP0002", ("NIR/NIR_FP0002_1_DOWN_a.jpg", "FP0002", Domain.NIR)),
            (LAMP, "VIS/VIS_P0584_5_e.jpg\tP0584 ", ("VIS/VIS_P0584_5_e.jpg", "P0584", Domain.VIS)),
            (CASIA, r"s4\NIR\30776\001.bmp", ("s4/NIR/30776/001.bmp", "30776", Domain.NIR)),
            (CASIA, r"s1\VIS\00066\001-B.jpg", ("s1/VIS/00066/001-B.jpg", "00066", Domain.VIS)),
            (CASIA, r"s1\VIS\00066\001.jpg 17", ("s1/VIS/00066/001.jpg", "17", Domain.VIS)),
            (TUFTS, "TD_IR_A/54/TD_IR_A_4.jpg", ("TD_IR_A/54/TD_IR_A_4.jpg", "54", Domain.THERMAL)),
            (TUFTS, "./TD_RGB_E//23/TD_RGB_E_1.jpg", ("TD_RGB_E/23/TD_RGB_E_1.jpg", "23", Domain.VIS)),
            (TUFTS, "my faces/TD_IR_A/54/a b.jpg", ("my faces/TD_IR_A/54/a b.jpg", "54", Domain.THERMAL)),
            (TUFTS, "TD_IR_A/Zoë/bild.jpg", ("TD_IR_A/Zoë/bild.jpg", "Zoë", Domain.THERMAL)),
        ],
    )
    def test_real_lines_of_both_styles(self, protocol: Any, line: str, expected: tuple[str, str, Domain]) -> None:
        assert parse_line(line, protocol) == expected

    @pytest.mark.parametrize(
        ("protocol", "line", "message"),
        [
            (LAMP, "VIS/VIS_P0584_5_e.jpg", "has no identity behind it"),
            (LAMP, "VIS/VIS_P0584_5", "not the path of an image"),
            (LAMP, "VIS/VIS_P0584_5_e.jpg P0584 extra", "not the path of an image"),
            (LAMP, "P0584", "not the path of an image"),
            (CASIA, r"s1\IR\00066\001.jpg", "expected one of VIS, NIR in the path"),
            (CASIA, r"NIR\VIS\00066\001.jpg", "expected one of VIS, NIR in the path"),
            (CASIA, "NIR_1.jpg", "in no folder that would name its identity"),
            (CASIA, r"..\VIS\00066\001.jpg", "leads out of the data set"),
            (CASIA, "/s1/VIS/00066/001.jpg", "leads out of the data set"),
            (CASIA, r"D:\VIS\00066\001.jpg", "leads out of the data set"),
            (CASIA, "s1/VIS/00066/0\x0001.jpg", "control characters"),
        ],
    )
    def test_a_line_that_says_too_little_is_refused(self, protocol: Any, line: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            parse_line(line, protocol)

    def test_bad_lines_are_named_by_number_and_the_rest_is_kept(self) -> None:
        text = "VIS/a.jpg P1\r\n\r\n  \r\nVIS/b.jpg\r\nNIR/c.jpg P1\r\nVIS\\a.jpg P2\r\nVIS/d.jpg P2"
        found = parse_list(text, "list.txt", LAMP, {Domain.VIS})
        assert [entry.path for entry in found.entries] == ["VIS/a.jpg", "VIS/d.jpg"]
        assert [(line.path, line.reason) for line in found.refused] == [
            ("list.txt, line 4", "VIS/b.jpg has no identity behind it"),
            ("list.txt, line 5", "NIR/c.jpg is near-infrared; expected visible here"),
            ("list.txt, line 6", "VIS/a.jpg was listed before, in line 1"),
        ]

    def test_an_empty_list_is_empty(self) -> None:
        assert parse_list("\ufeff".strip("\ufeff"), "list.txt", LAMP, BOTH) == ([], [])


class TestFuzz:
    @given(text=st.text(), protocol=st.sampled_from(list(PROTOCOLS.values())))
    def test_any_text_gives_entries_below_the_folder_or_named_lines(self, text: str, protocol: Any) -> None:
        self.check(text, protocol)

    @given(
        lines=st.lists(
            st.text(st.sampled_from("VISNRTDGB_/\\. \t\rpgjm019é\u2028\x1c\0"), max_size=40)
            | st.sampled_from(["VIS/VIS_P1_a.jpg P1", r"s1\NIR\7\001.bmp", "TD_IR_A/5/TD_IR_A_1.jpg", ""])
        ),
        end=st.sampled_from(["\n", "\r\n", "\r"]),
        protocol=st.sampled_from(list(PROTOCOLS.values())),
    )
    def test_lines_nearly_right(self, lines: list[str], end: str, protocol: Any) -> None:
        self.check(end.join(lines), protocol)

    def check(self, text: str, protocol: Any) -> None:
        found = parse_list(text, "list", protocol, set(protocol.domains.values()))
        written = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
        assert len(found.entries) + len(found.refused) == len(written)
        assert len({entry.path for entry in found.entries}) == len(found.entries)
        for entry in found.entries:
            assert entry.identity.strip() == entry.identity != ""
            assert entry.domain in protocol.domains.values()
            path = Path("/data") / entry.path
            assert path.suffix.lower() in IMAGE_SUFFIXES
            assert Path("/data") in path.parents and ".." not in path.parts and "\0" not in entry.path
            # what was read can be written and read again
            again = f"{entry.path} {entry.identity}" if protocol.identity_column else entry.path
            if protocol.identity_column or path.parent.name == entry.identity:
                assert parse_line(again, protocol) == entry

    @given(line=st.sampled_from(["NIR/NIR_FP0002_1_DOWN_a.jpg FP0002", "VIS/VIS_P0584_5_e.jpg P0584"]), data=st.data())
    def test_a_truncated_line_never_names_somebody_else(self, line: str, data: st.DataObject) -> None:
        whole = parse_line(line, LAMP)
        cut = line[: data.draw(st.integers(0, len(line) - 1))]
        found = parse_list(cut, "list", LAMP, BOTH)
        assert len(found.entries) + len(found.refused) == bool(cut.strip())
        for entry in found.entries:
            assert entry.path == whole.path and whole.identity.startswith(entry.identity)


class TestDataSet:
    def test_source_strings(self, tmp_path: Path) -> None:
        assert is_heterogeneous("lamp-hq:x") and is_heterogeneous("tufts:") and not is_heterogeneous("synthetic:a=1")
        assert not is_heterogeneous(tmp_path)
        root = write_lists(tmp_path, {**lamp_lists(1), **lamp_lists(10)})
        found = open_heterogeneous(f"lamp-hq:{root},fold=10")
        assert (found.folds, found.chosen, found.first, found.title) == ((1, 10), 10, 10, "LAMP-HQ")
        assert open_heterogeneous(f"lamp-hq:{root}").first == 1
        assert found.set_name(10, "train") == "LAMP-HQ fold 10 (train)"
        assert found.trained_fold("LAMP-HQ fold 10 (train)") == 10
        assert found.trained_fold("simulated LAMP-HQ fold 10 (train)") is None
        assert found.trained_fold("faces/train") is None

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("lamp-hq:", "names no folder"),
            ("lamp-hq:{root}/nowhere", "no such folder"),
            ("lamp-hq:{root},fold=two", "fold='two'; expected a whole number"),
            ("lamp-hq:{root},fold=3", "no complete fold 3; found 1"),
            ("tufts:{root}", "no complete fold of Tufts .*train.txt, gallery_small.txt or gallery_all.txt, probe.txt"),
            ("lfw:{root}", "no protocol 'lfw'; known: lamp-hq, casia-nir-vis, tufts"),
        ],
    )
    def test_mistakes_are_explained(self, tmp_path: Path, source: str, message: str) -> None:
        write_lists(tmp_path, lamp_lists(1))
        with pytest.raises(DataError, match=message):
            open_heterogeneous(source.format(root=tmp_path))

    def test_a_folder_without_lists_says_where_they_go(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no folder Protocol; copy or link .*Protocol/test/gallery_vis1\.txt"):
            open_heterogeneous(f"lamp-hq:{tmp_path}")

    def test_an_incomplete_fold_is_named(self, tmp_path: Path) -> None:
        root = write_lists(tmp_path, {**lamp_lists(1), "test/probe_nir2.txt": ""}, folder="protocols")
        found = open_heterogeneous(f"lamp-hq:{root}")
        assert found.folds == (1,)
        assert [line.reason for line in found.incomplete] == ["no train/train_fold2.txt, test/gallery_vis2.txt"]
        with pytest.raises(DataError, match=r"no complete fold 2; found 1; .*fold 2: no train/train_fold2\.txt"):
            open_heterogeneous(f"lamp-hq:{root},fold=2")

    def test_numbers_are_written_as_the_lists_write_them(self, tmp_path: Path) -> None:
        root = write_lists(tmp_path, {**lamp_lists(1), "test/probe_nir02.txt": "", "test/probe_nirdev.txt": ""})
        found = open_heterogeneous(f"lamp-hq:{root}")
        assert found.folds == (1,) and found.incomplete == []

    def test_tufts_small_gallery_comes_before_the_whole_one(self, tmp_path: Path) -> None:
        lists = {"train.txt": "", "probe.txt": "", "gallery_all.txt": "TD_RGB_A/1/a.jpg\nTD_RGB_A/1/b.jpg\n"}
        found = open_heterogeneous(f"tufts:{write_lists(tmp_path, lists)}")
        assert found.folds == (1,)
        assert len(found.read("gallery", 1).entries) == 2
        write_lists(tmp_path, {"gallery_small.txt": "TD_RGB_A/1/a.jpg\n"})
        assert found.read("gallery", 1).entries == [ListedImage("TD_RGB_A/1/a.jpg", "1", Domain.VIS)]

    def test_two_training_lists_become_one(self, tmp_path: Path) -> None:
        lists = {
            "vis_train_2.txt": "s1\\VIS\\1\\1.jpg\r\n",
            "nir_train_2.txt": "s1\\NIR\\1\\1.bmp\r\ns1\\VIS\\1\\1.jpg\r\n",
            "vis_gallery_2.txt": "",
            "nir_probe_2.txt": "",
        }
        found = open_heterogeneous(f"casia-nir-vis:{write_lists(tmp_path, lists)}").read("train", 2)
        assert [entry.path for entry in found.entries] == ["s1/VIS/1/1.jpg", "s1/NIR/1/1.bmp"]
        assert [line.reason for line in found.refused] == ["is in more than one training list"]

    def test_a_list_in_another_encoding_is_named(self, tmp_path: Path) -> None:
        root = write_lists(tmp_path, lamp_lists(1))
        (root / "Protocol/test/probe_nir1.txt").write_bytes("NIR/é.jpg P1".encode("latin-1"))
        with pytest.raises(DataError, match=r"probe_nir1\.txt: cannot be read as a list in UTF-8"):
            open_heterogeneous(f"lamp-hq:{root}").read("probe", 1)

    def test_a_byte_order_mark_is_no_part_of_a_path(self, tmp_path: Path) -> None:
        root = write_lists(tmp_path, lamp_lists(1))
        (root / "Protocol/test/probe_nir1.txt").write_bytes(b"\xef\xbb\xbfNIR/a.jpg P1\r\n")
        assert open_heterogeneous(f"lamp-hq:{root}").read("probe", 1).entries[0].path == "NIR/a.jpg"

    def test_the_mark_of_simulation_is_read_or_refused(self, tmp_path: Path) -> None:
        root = write_lists(tmp_path, lamp_lists(1))
        (root / "SIMULATED.json").write_text(json.dumps({"seed": 3}))
        found = open_heterogeneous(f"lamp-hq:{root}")
        assert found.simulation == {"seed": 3}
        assert found.set_name(1, "test") == "simulated LAMP-HQ fold 1 (test)"
        for broken in ("{", "[]", "{}"):
            (root / "SIMULATED.json").write_text(broken)
            with pytest.raises(DataError, match=r"SIMULATED\.json .*simulate the data set again"):
                open_heterogeneous(f"lamp-hq:{root}")


class TestRealLists:
    @pytest.mark.parametrize(
        ("source", "fold", "train", "gallery", "probes"),
        [
            ("lamp-hq:{}/LAMP-HQ", 1, (38323, 300), (273, 273), (27263, 273)),
            ("casia-nir-vis:{}/NIR-VISv2", 2, (2557 + 6161, 357), (358, 358), (6232, 358)),
            ("tufts:{}/Tufts", 1, (2480, 90), (280, 22), (308, 22)),
        ],
    )
    def test_every_line_of_the_real_lists_is_understood(
        self,
        shared: Path,
        source: str,
        fold: int,
        train: tuple[int, int],
        gallery: tuple[int, int],
        probes: tuple[int, int],
    ) -> None:
        found = open_heterogeneous(source.format(shared / "protocols"))
        assert found.folds == (fold,) and found.simulation is None
        read = [found.read(part, fold) for part in ("train", "gallery", "probe")]  # type: ignore[arg-type]
        assert [(len(file.entries), len({entry.identity for entry in file.entries})) for file in read] == [
            train,
            gallery,
            probes,
        ]
        assert not any(file.refused for file in read)
        people = [{entry.identity for entry in file.entries} for file in read]
        assert people[1] == people[2] and not people[0] & people[1]
