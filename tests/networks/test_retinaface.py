from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfr.networks.retinaface import (
    RetinaFace,
    anchors,
    decode_boxes,
    decode_landmarks,
    load_retinaface,
)
from ppfr.util.errors import CheckpointError, ShapeError

SIDES = {8: (10, 20), 16: (32, 64), 32: (128, 256)}


def slow_anchors(height: int, width: int) -> list[tuple[float, float, float]]:
    places = []
    for stride, sides in SIDES.items():
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                for side in sides:
                    places.append(((column + 0.5) * stride, (row + 0.5) * stride, float(side)))
    return places


class TestDecoding:
    @given(st.integers(32, 150), st.integers(32, 150))
    def test_anchors_are_those_of_plain_loops(self, height: int, width: int):
        torch.testing.assert_close(anchors(height, width), torch.tensor(slow_anchors(height, width)))

    def test_boxes_and_landmarks_are_those_of_plain_loops(self, generator: torch.Generator):
        places = slow_anchors(70, 45)
        boxes = torch.randn(2, len(places), 4, generator=generator)
        points = torch.randn(2, len(places), 10, generator=generator)
        ours = decode_boxes(boxes, torch.tensor(places)), decode_landmarks(points, torch.tensor(places))
        for image in range(2):
            for row, (x, y, side) in enumerate(places):
                dx, dy, dw, dh = boxes[image, row].tolist()
                width, height = side * math.exp(0.2 * dw), side * math.exp(0.2 * dh)
                middle = x + 0.1 * dx * side, y + 0.1 * dy * side
                box = [middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2]
                assert ours[0][image, row].tolist() == pytest.approx(box, rel=1e-4, abs=1e-3)
                values = points[image, row].tolist()
                for point in range(5):
                    place = [x + 0.1 * values[2 * point] * side, y + 0.1 * values[2 * point + 1] * side]
                    assert ours[1][image, row, point].tolist() == pytest.approx(place, rel=1e-4, abs=1e-3)


class TestNetwork:
    @pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (75, 131)])
    def test_a_prediction_for_every_anchor(self, height: int, width: int, generator: torch.Generator):
        network = RetinaFace().eval()
        with torch.inference_mode():
            images = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
            found = network(images)
            alone = network(images[1:])
        count = len(slow_anchors(height, width))
        assert found.scores.shape == (2, count)
        assert found.boxes.shape == (2, count, 4)
        assert found.landmarks.shape == (2, count, 5, 2)
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one[1:], other, rtol=1e-4, atol=1e-4)

    def test_double_precision(self):
        found = RetinaFace().double().eval()(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
        assert {part.dtype for part in found} == {torch.float64}

    @pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 31, 64), (1, 3, 64, 31)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]):
        with pytest.raises(ShapeError, match=r"RetinaFace got images .*; expected \(B, 3, H, W\), both at least 32"):
            RetinaFace()(torch.zeros(shape))


class TestLoading:
    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        return RetinaFace().state_dict()

    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_by_name(self, state: dict[str, torch.Tensor], tmp_path: Path, prefix: str):
        torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "weights.pth")
        network = load_retinaface(tmp_path / "weights.pth")
        assert not network.training
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, state[name])

    def test_another_network(self, state: dict[str, torch.Tensor], tmp_path: Path):
        del state["fpn.merge1.0.weight"]
        torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "weights.pth")
        with pytest.raises(
            CheckpointError,
            match=r"weights\.pth does not fit RetinaFace (.|\n)*missing \(1\): fpn\.merge1\.0\.weight\n.*\(1\): extra",
        ):
            load_retinaface(tmp_path / "weights.pth")

    def test_another_width(self, state: dict[str, torch.Tensor], tmp_path: Path):
        state["ssh1.conv3X3.0.weight"] = torch.zeros(64, 64, 3, 3)
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=r"ssh1\.conv3X3\.0\.weight is \(64, .* expected \(32, 64"):
            load_retinaface(tmp_path / "weights.pth")

    def test_the_published_weights(self, shared: Path):
        network = load_retinaface(shared / "models" / "retinaface_mobilenet0.25.pth")
        assert sum(value.numel() for value in network.parameters()) == 426_608
