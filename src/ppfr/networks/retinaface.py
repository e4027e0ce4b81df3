"""RetinaFace (Deng et al. 2020, "RetinaFace: single-shot multi-level face localisation in the wild"), MobileNet-0.25.

The layers have the names of published PyTorch weights, those of biubug6's Face-Detector-1MB-with-landmark
(`weights/mobilenet0.25_Final.pth`), so that these load. The same author's Pytorch_Retinaface has a network of the same
names and shapes with other activations (leaky ReLU) and anchors (16 to 512 pixels): its weights load too, but give
wrong detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.networks.checkpoints import load_state
from ppfr.networks.weightfile import read_state_dict
from ppfr.util.errors import ShapeError

STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((10, 20), (32, 64), (128, 256))
"""Sides in pixels of the square anchors around each point of the three feature maps."""

# offsets of box centres and landmarks are in tenths of the anchor's side, logarithms of sizes in fifths
_CENTRE_SCALE, _SIZE_SCALE = 0.1, 0.2
_MEAN_BGR = (104.0, 117.0, 123.0)
_WIDTH = 64
_ANCHORS = 2


class Predictions(NamedTuple):
    """For every anchor (B, A): score in [0, 1], box (B, A, 4) left top right bottom and landmarks (B, A, 5, 2)."""

    scores: Tensor
    boxes: Tensor
    landmarks: Tensor


class RetinaFace(nn.Module):
    """Face detector: images to scored boxes and landmarks; see `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _Body()
        self.fpn = _Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = (_Context() for _ in STRIDES)
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList(_Head(values) for _ in STRIDES) for values in (2, 4, 10)
        )

    def forward(self, images: Tensor) -> Predictions:
        """Predict for images (B, 3, H, W), RGB in [-1, 1], of any height and width of at least 32; in their pixels.

        Anchors are ordered by stride, row, column and side. Raises ShapeError.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < max(STRIDES):
            raise ShapeError(f"RetinaFace got images {tuple(images.shape)}; expected (B, 3, H, W), both at least 32")
        mean = images.new_tensor(_MEAN_BGR).reshape(3, 1, 1)
        maps = self.fpn(self.body((images.flip(1) + 1) * 127.5 - mean))
        features = [context(each) for context, each in zip((self.ssh1, self.ssh2, self.ssh3), maps, strict=True)]
        classes, boxes, points = (
            torch.cat([head(each) for head, each in zip(heads, features, strict=True)], 1)
            for heads in (self.ClassHead, self.BboxHead, self.LandmarkHead)
        )
        places = anchors(images.shape[2], images.shape[3]).to(images)
        return Predictions(
            scores=classes.softmax(-1)[..., 1],
            boxes=decode_boxes(boxes, places),
            landmarks=decode_landmarks(points, places),
        )


@lru_cache(maxsize=32)
def anchors(height: int, width: int) -> Tensor:
    """Centre x, centre y and side in pixels of all anchors (A, 3) of an image, in the order of the predictions."""
    parts = []
    for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
        rows = (torch.arange(-(-height // stride)) + 0.5) * stride
        columns = (torch.arange(-(-width // stride)) + 0.5) * stride
        y, x, side = torch.meshgrid(rows, columns, torch.tensor(sides, dtype=torch.float32), indexing="ij")
        parts.append(torch.stack([x, y, side], -1).reshape(-1, 3))
    return torch.cat(parts)


def decode_boxes(values: Tensor, places: Tensor) -> Tensor:
    """Boxes (..., A, 4) as left, top, right, bottom from the network's values (..., A, 4) for anchors (A, 3)."""
    side = places[:, 2:]
    centre = places[:, :2] + values[..., :2] * _CENTRE_SCALE * side
    half = side * torch.exp(values[..., 2:] * _SIZE_SCALE) / 2
    return torch.cat([centre - half, centre + half], -1)


def decode_landmarks(values: Tensor, places: Tensor) -> Tensor:
    """Landmarks (..., A, 5, 2) from the network's values (..., A, 10) for anchors (A, 3)."""
    points = values.reshape(*values.shape[:-1], 5, 2)
    return places[:, None, :2] + points * _CENTRE_SCALE * places[:, None, 2:]


def load_retinaface(path: Path | str) -> RetinaFace:
    """RetinaFace with published weights, in evaluation mode; raises CheckpointError naming what does not fit."""
    state, _ = read_state_dict(path)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    # older files also hold the classifier of the whole MobileNet
    state = {name: value for name, value in state.items() if not name.startswith("body.fc")}
    network = RetinaFace()
    load_state(network, state, f"{Path(path).name} does not fit RetinaFace with MobileNet-0.25")
    return network.eval()


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, linear: bool = False) -> nn.Sequential:
    """Convolution, batch norm and, unless `linear`, ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if linear else [nn.ReLU(inplace=True)]))


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 filter for each channel, then a 1x1 convolution (Howard et al. 2017, "MobileNets")."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _stage(channels: Sequence[int], stride: int) -> list[nn.Sequential]:
    return [
        _separable(here, there, stride if place == 0 else 1) for place, (here, there) in enumerate(pairwise(channels))
    ]


class _Body(nn.Module):
    """MobileNet with a quarter of its channels, to features of strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            _conv(3, 8, 3, 2),
            _separable(8, 16, 1),
            *_stage((16, 32, 32), 2),
            *_stage((32, 64, 64), 2),
        )
        self.stage2 = nn.Sequential(*_stage((64, 128, 128, 128, 128, 128, 128), 2))
        self.stage3 = nn.Sequential(*_stage((128, 256, 256), 2))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for stage in (self.stage1, self.stage2, self.stage3):
            images = stage(images)
            maps.append(images)
        return maps


class _Pyramid(nn.Module):
    """Coarse features added to finer ones (Lin et al. 2017, "Feature pyramid networks")."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (_conv(channels, _WIDTH, 1) for channels in (64, 128, 256))
        self.merge1, self.merge2 = (_conv(_WIDTH, _WIDTH, 3) for _ in range(2))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (
            output(each) for output, each in zip((self.output1, self.output2, self.output3), maps, strict=True)
        )
        middle = self.merge2(middle + F.interpolate(coarse, middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, fine.shape[2:], mode="nearest"))
        return [fine, middle, coarse]


class _Context(nn.Module):
    """Features with receptive fields of 3, 5 and 7 (Najibi et al. 2017, "SSH: single stage headless face detector")."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3X3 = _conv(_WIDTH, _WIDTH // 2, 3, linear=True)
        self.conv5X5_1 = _conv(_WIDTH, _WIDTH // 4, 3)
        self.conv5X5_2 = _conv(_WIDTH // 4, _WIDTH // 4, 3, linear=True)
        self.conv7X7_2 = _conv(_WIDTH // 4, _WIDTH // 4, 3)
        self.conv7x7_3 = _conv(_WIDTH // 4, _WIDTH // 4, 3, linear=True)

    def forward(self, features: Tensor) -> Tensor:
        narrow = self.conv5X5_1(features)
        windows = [self.conv3X3(features), self.conv5X5_2(narrow), self.conv7x7_3(self.conv7X7_2(narrow))]
        return F.relu(torch.cat(windows, 1))


class _Head(nn.Module):
    """Predictions for each anchor of a feature map, (B, H * W * 2, values)."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(_WIDTH, _ANCHORS * values, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.as_tensor(self.conv1x1(features)).movedim(1, -1).reshape(len(features), -1, self.values)
