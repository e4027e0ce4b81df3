"""PFLD: 98 facial landmarks, for the region of interest of DuetFace."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppfr.networks.checkpoints import load_state
from ppfr.networks.weightfile import read_state_dict
from ppfr.util.errors import ShapeError

LANDMARKS = 98
SIZE = 112


class InvertedBottleneck(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project linearly; ReLU between (Sandler et al. 2018)."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int = 1) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        return features


class PFLD(nn.Module):
    """Landmark network of Guo et al. 2019, "PFLD", with the names of its public weights (PFLDInference).

    `bn8` has weights in the published files and is, as there, not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3_1 = InvertedBottleneck(64, 64, 2, stride=2)
        for index in range(2, 6):
            self.add_module(f"block3_{index}", InvertedBottleneck(64, 64, 2))
        self.conv4_1 = InvertedBottleneck(64, 128, 2, stride=2)
        self.conv5_1 = InvertedBottleneck(128, 128, 4)
        for index in range(2, 7):
            self.add_module(f"block5_{index}", InvertedBottleneck(128, 128, 4))
        self.conv6_1 = InvertedBottleneck(128, 16, 2)
        self.conv7 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.conv8 = nn.Conv2d(32, 128, 7)
        self.bn8 = nn.BatchNorm2d(128)
        self.fc = nn.Linear(16 + 32 + 128, 2 * LANDMARKS)

    def forward(self, images: Tensor) -> Tensor:
        """Return landmarks (B, 98, 2), x and y as fractions of the image's width and height.

        `images` is (B, 3, 112, 112) RGB in [-1, 1]; the weights were trained on [0, 1], which is done here.
        Landmarks may lie outside the image. Raises ShapeError.
        """
        if images.shape[1:] != (3, SIZE, SIZE):
            raise ShapeError(f"images have shape {tuple(images.shape)}; PFLD expects (B, 3, {SIZE}, {SIZE})")
        x = self.bn1(self.conv1((images + 1) / 2)).relu()
        x = self.conv3_1(self.bn2(self.conv2(x)).relu())
        x = self._residual(x, "block3_", range(2, 6))
        x = self.conv5_1(self.conv4_1(x))
        x = self._residual(x, "block5_", range(2, 7))
        fine = self.conv6_1(x)
        middle = self.conv7(fine)
        coarse = self.conv8(middle).relu()
        scales = torch.cat([F.adaptive_avg_pool2d(part, 1).flatten(1) for part in (fine, middle, coarse)], dim=1)
        landmarks: Tensor = self.fc(scales).unflatten(1, (LANDMARKS, 2))
        return landmarks

    def _residual(self, x: Tensor, prefix: str, indices: range) -> Tensor:
        for index in indices:
            x = x + self.get_submodule(f"{prefix}{index}")(x)
        return x


def load_pfld(path: Path | str) -> PFLD:
    """Load published PFLD weights, bare or beside the auxiliary network; in evaluation mode, on the CPU.

    Raises CheckpointError, with all misfits at once, rather than loading half.
    """
    state, _ = read_state_dict(path)
    with torch.device("meta"):
        network = PFLD()
    state = {key.removeprefix("module."): value for key, value in state.items()}
    load_state(network, state, f"{Path(path).name} does not fit PFLD")
    return network.eval()
