"""Observed payloads under the hypotheses assigned to them, those of one image joined, and their noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ppfr.attacks.inverse.linear_operator import Survey, as_channels
from ppfr.methods.common.audit_hooks import Hypothesis

# images whose payloads a tensor's noise is estimated from
_SAMPLE = 4
# values sampled to find a channel's quantiser, and how often each must occur on average
_STEP_SAMPLE, _STEP_REPEATS = 2048, 4


def join(
    hypotheses: Sequence[Hypothesis], surveys: Sequence[Survey], names: Sequence[str]
) -> tuple[Hypothesis, tuple[str, ...], Survey]:
    """Several clients as one that sends all their tensors, with the names it gives to `names`, and its survey."""
    if len(hypotheses) == 1:
        return hypotheses[0], tuple(names), surveys[0]

    def apply(images: Tensor) -> dict[str, Tensor]:
        sent = [hypothesis.apply(images) for hypothesis in hypotheses]
        return {_label(name, place): part[name] for place, part in enumerate(sent) for name in part}

    joint = Survey({}, {}, {}, {})
    for place, found in enumerate(surveys):
        for whole, part in zip(vars(joint).values(), vars(found).values(), strict=True):
            whole.update({_label(name, place): value for name, value in part.items()})
    labels = tuple(_label(name, place) for place in range(len(hypotheses)) for name in names)
    return Hypothesis(" + ".join(hypothesis.name for hypothesis in hypotheses), apply), labels, joint


def _label(name: str, place: int) -> str:
    return name if place == 0 else f"{name} of hypothesis {place + 1}"


def distinct_payloads(tensors: Mapping[str, Tensor], per_image: int) -> tuple[dict[str, Tensor], int]:
    """The payloads of images without repetitions, and how many of each image: a client without draws repeats itself.

    Row `i * images + image` of `tensors` is the i-th payload of that image.
    """
    count = len(next(iter(tensors.values()))) // per_image
    kept: list[dict[str, Tensor]] = []
    for first in range(0, per_image * count, count):
        part = {name: tensor[first : first + count] for name, tensor in tensors.items()}
        if not any(all(torch.equal(part[name], known[name]) for name in part) for known in kept):
            kept.append(part)
    if len(kept) == per_image:
        return dict(tensors), per_image
    return {name: torch.cat([part[name] for part in kept]) for name in tensors}, len(kept)


class Observed:
    """Payloads of some images, arranged as the tensors of joint hypotheses (`join`).

    `members[i][k]` are the rows of `tensors` that are of image i under the k-th of the joint hypotheses; several
    are averaged, so that noise averages out. All images have equally many.
    """

    def __init__(self, tensors: Mapping[str, Tensor], members: Sequence[Sequence[Sequence[int]]]) -> None:
        self._members = members
        self._sources = {
            _label(name, place): (tensor, place) for place in range(len(members[0])) for name, tensor in tensors.items()
        }

    @classmethod
    def single(cls, tensors: Mapping[str, Tensor], rows: Sequence[int]) -> Observed:
        """One payload of each image: the given rows."""
        return cls(tensors, [[[row]] for row in rows])

    def __len__(self) -> int:
        return len(self._members)

    def channels(self, name: str, images: slice) -> Tensor:
        """Channels (B,C,N) of a tensor for some of the images."""
        first, *others = self._seen(name, images)
        if not others:
            return self._channels(name, first)
        # one payload after the other: large ones do not fit into memory side by side
        total = self._channels(name, first).double()
        for rows in others:
            total += self._channels(name, rows)
        return total.div_(len(others) + 1)

    def noise(self, name: str, images: slice = slice(None), *, spread: bool) -> Tensor:
        """Variance (C,) of the noise of a tensor, estimated from some of the images.

        It is that of rounding to a grid or to whole numbers, infinite where the grid is too coarse for a channel. With
        `spread`, where several payloads of one image under one hypothesis differ by more than that, it is the variance
        of their mean instead: noise before rounding averages out together with the rounding.
        """
        first, end, _ = images.indices(len(self))
        sample = slice(first, min(end, first + _SAMPLE))
        seen = self._seen(name, sample)
        steps = quantiser_steps(self._channels(name, seen[0]).double())
        if not self._sources[name][0].is_floating_point():
            steps = steps.clamp_min(1.0)
        rounding = steps.square() / 12
        if len(seen) == 1 or not spread:
            return rounding
        mean = self.channels(name, sample)
        squares = torch.stack([(self._channels(name, rows) - mean).square_().mean((0, 2)) for rows in seen])
        differences = squares.sum(0) / (len(seen) - 1)
        return torch.where(differences > rounding, differences / len(seen), rounding)

    def _channels(self, name: str, rows: Sequence[int]) -> Tensor:
        return as_channels(self._sources[name][0][list(rows)])

    def _seen(self, name: str, images: slice) -> list[tuple[int, ...]]:
        """The rows that are the first payload of each image under the tensor's hypothesis, the second, and so on."""
        _, place = self._sources[name]
        return list(zip(*(members[place] for members in self._members[images]), strict=True))


def quantiser_steps(channels: Tensor) -> Tensor:
    """Quantiser step (C,) of channels (B,C,N), the median over images.

    0 for a channel that is not on a coarse grid, whose values seldom repeat; infinite for a constant one.
    """
    if channels.shape[2] < _STEP_REPEATS:
        return channels.new_zeros(channels.shape[1])
    sample = channels[..., :: -(-channels.shape[2] // _STEP_SAMPLE)].sort(dim=2).values
    gaps = sample.diff(dim=2)
    distinct = (gaps > 0).sum(2) + 1
    least = torch.where(gaps > 0, gaps, torch.full_like(gaps, float("inf"))).amin(2)
    coarse = distinct * _STEP_REPEATS <= sample.shape[2]
    return torch.where(coarse, least, torch.zeros_like(least)).median(0).values
