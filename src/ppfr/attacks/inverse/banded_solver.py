"""Banded linear systems over the pixels of an image: stencils, block Cholesky factors and conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ppfr.util.errors import AttackError

Offset = tuple[int, int]
LARGEST_REACH = 2
# unknowns of a band: its square times the bands is what the factors take of memory
_LARGEST_BLOCK = 800
# grey levels: bright enough that a float32 client's rounding does not matter
_BRIGHT = 100.0


def square(reach: int) -> list[Offset]:
    """All (dy, dx) with both at most `reach`, row by row."""
    return [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]


def shifted(field: Tensor, dy: int, dx: int) -> Tensor:
    """`result[..., i, j] = field[..., i + dy, j + dx]`, zero where that lies outside."""
    height, width = field.shape[-2:]
    padded = F.pad(field, (max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))
    top, left = max(dy, 0), max(dx, 0)
    return padded[..., top : top + height, left : left + width]


class LocalOperator:
    """A linear map from planes (B,3,H,W) to channels (B,C,H,W) whose values depend on pixels within `reach` only.

    For each plane, `channels[p]` lists those that depend on it and `stencils[p]` (channels, (2 reach + 1)^2, H, W)
    holds the weight of the pixel at each offset.
    """

    def __init__(self, reach: int, channels: list[Tensor], stencils: list[Tensor]) -> None:
        self.reach = reach
        self.channels = channels
        self.stencils = stencils
        self.offsets = square(reach)

    @classmethod
    def probe(cls, forward: Callable[[Tensor], Tensor], like: Tensor) -> LocalOperator | None:
        """Estimate the stencils from `forward`'s output for grids of bright pixels; None if it is not local enough.

        `forward` is linear, from planes (B,3,H,W) to channels (B,C,H,W); `like` (3,H,W) gives size, type and device.
        """
        reach = _reach(forward, like)
        if reach is None:
            return None
        noise = torch.randn(like.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        tests = _BRIGHT * torch.diag_embed(noise.to(like).movedim(0, -1)).movedim((-2, -1), (0, 1))
        answers = forward(tests)
        # a channel with rounding noise only does not depend on the plane
        energy = answers.square().mean((2, 3)).sqrt()
        seen = energy > 1e-5 * energy.amax(0)
        coupled = bool((seen.sum(0) > 1).any())
        if max(2 * reach, 1) * like.shape[2] * (3 if coupled else 1) > _LARGEST_BLOCK:
            return None
        channels = [row.nonzero().flatten() for row in seen]
        stencils = [_plane_stencils(forward, like, plane, reach, kept) for plane, kept in enumerate(channels)]
        operator = cls(reach, channels, stencils)
        error = (operator.apply(tests, answers.shape[1]) - answers).square().mean((2, 3)).sqrt()
        return operator if bool((error <= 1e-4 * energy.amax(0)).all()) else None

    def apply(self, planes: Tensor, channels: int) -> Tensor:
        """Planes (B,3,H,W) to channels (B,`channels`,H,W)."""
        result = planes.new_zeros(len(planes), channels, *planes.shape[2:])
        for plane, (seen, stencils) in enumerate(zip(self.channels, self.stencils, strict=True)):
            for position, (dy, dx) in enumerate(self.offsets):
                result[:, seen] += stencils[:, position] * shifted(planes[:, plane, None], dy, dx)
        return result

    def adjoint(self, channels: Tensor) -> Tensor:
        """Channels (B,C,H,W) to planes (B,3,H,W): the transpose of `apply`."""
        planes = []
        for seen, stencils in zip(self.channels, self.stencils, strict=True):
            values = channels[:, seen]
            plane = channels.new_zeros(len(channels), *channels.shape[2:])
            for position, (dy, dx) in enumerate(self.offsets):
                plane += shifted(torch.einsum("chw,bchw->bhw", stencils[:, position], values), -dy, -dx)
            planes.append(plane)
        return torch.stack(planes, dim=1)

    def gram(self, weights: Tensor) -> LocalSystem:
        """A^T diag(weights) A, with one weight for each channel (C,)."""
        like = self.stencils[0].new_empty(3, *self.stencils[0].shape[-2:])
        system = LocalSystem(like, max(2 * self.reach, 1))
        for first in range(3):
            for second in range(3):
                self._couple(system, weights, first, second)
        return system

    def _couple(self, system: LocalSystem, weights: Tensor, first: int, second: int) -> None:
        common = _intersection(self.channels[first], self.channels[second])
        if not len(common):
            return
        left = self.stencils[first][torch.searchsorted(self.channels[first], common)]
        right = self.stencils[second][torch.searchsorted(self.channels[second], common)]
        products = torch.einsum("c,ckhw,clhw->klhw", weights[common], left, right)
        for k, (dy, dx) in enumerate(self.offsets):
            for position, (ey, ex) in enumerate(self.offsets):
                system.add(first, second, (ey - dy, ex - dx), shifted(products[k, position], -dy, -dx))


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    return first[torch.isin(first, second)]


def _reach(forward: Callable[[Tensor], Tensor], like: Tensor) -> int | None:
    """The reach of a map, from single bright pixels in a few places; None beyond LARGEST_REACH."""
    _, height, width = like.shape
    places = [(y * height // 8, x * width // 8) for y, x in ((1, 2), (4, 4), (3, 6), (6, 5))]
    probes = like.new_zeros(len(places), 3, height, width)
    for row, (y, x) in enumerate(places):
        probes[row, :, y, x] = like.new_tensor([1.0, 0.6, -0.7])
    answers = forward(_BRIGHT * probes)
    if answers.shape[-2:] != like.shape[-2:]:
        return None
    strength = answers.abs()
    visible = (strength > 1e-6 * strength.amax(dim=(0, 2, 3), keepdim=True)).any(1)
    reach = 0
    for row, (y, x) in enumerate(places):
        seen = visible[row].nonzero() - torch.tensor([y, x], device=like.device)
        if len(seen):
            reach = max(reach, int(seen.abs().max()))
    return reach if reach <= LARGEST_REACH else None


def _plane_stencils(
    forward: Callable[[Tensor], Tensor], like: Tensor, plane: int, reach: int, channels: Tensor
) -> Tensor:
    """(channels, (2 reach + 1)^2, H, W): the weights of a plane's neighbouring pixels in each channel, by position."""
    _, height, width = like.shape
    spacing = 2 * reach + 1
    probes = like.new_zeros(spacing * spacing, 3, height, width)
    for phase in range(spacing * spacing):
        probes[phase, plane, phase // spacing :: spacing, phase % spacing :: spacing] = 1
    answers = forward(_BRIGHT * probes)[:, channels] / _BRIGHT
    rows = torch.arange(height, device=like.device)[:, None]
    columns = torch.arange(width, device=like.device)
    stencils = []
    for dy, dx in square(reach):
        inside = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
        probe = (rows + dy) % spacing * spacing + (columns + dx) % spacing
        stencils.append(answers[probe, :, rows, columns].permute(2, 0, 1) * inside)
    return torch.stack(stencils, dim=1)


class LocalSystem:
    """A symmetric positive definite matrix over the pixels of three planes that couples near neighbours only.

    Built by `add`, then `factor`ed once and solved for many right-hand sides. `like` (3,H,W) gives size, type, device.
    """

    def __init__(self, like: Tensor, reach: int) -> None:
        self.size = (like.shape[-2], like.shape[-1])
        self.reach = reach
        self.entries: dict[tuple[int, int, int, int], Tensor] = {}
        self._like = like

    def add(self, first: int, second: int, offset: Offset, values: Tensor | float) -> None:
        """Add to the entries between pixel (i, j) of plane `first` and (i, j) + offset of plane `second`.

        `values` is a number or (H,W); entries whose second pixel lies outside the image are ignored.
        """
        if max(abs(offset[0]), abs(offset[1])) > self.reach:
            raise AttackError(f"offset {offset} is beyond the system's reach of {self.reach}")
        key = (first, second, *offset)
        if key not in self.entries:
            self.entries[key] = self._like.new_zeros(self.size)
        self.entries[key] += values

    def add_smoothness(self, plane: int, weight: float) -> None:
        """Add `weight` times the sum of squared differences of neighbouring pixels of a plane."""
        ones = self._like.new_ones(self.size)
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            neighbours = weight * shifted(ones, dy, dx)
            self.add(plane, plane, (0, 0), neighbours)
            self.add(plane, plane, (dy, dx), -neighbours)

    def apply(self, planes: Tensor) -> Tensor:
        """The matrix times planes (B,3,H,W)."""
        result = torch.zeros_like(planes)
        for (first, second, dy, dx), values in self.entries.items():
            result[:, first] += values * shifted(planes[:, second], dy, dx)
        return result

    def equals(self, other: LocalSystem) -> bool:
        """Whether two systems are the same up to rounding."""
        return self.entries.keys() == other.entries.keys() and all(
            torch.allclose(values, other.entries[key], rtol=1e-9, atol=1e-9 * float(values.abs().max()))
            for key, values in self.entries.items()
        )

    def factor(self) -> Factor:
        """Cholesky factors; raises AttackError if the matrix is not positive definite within float64."""
        return Factor(self)


class Factor:
    """A Cholesky factorisation by blocks: the matrix is block tridiagonal in bands of `reach` image rows.

    Planes that are not coupled are factored separately.
    """

    def __init__(self, system: LocalSystem) -> None:
        self.size = system.size
        self.band = max(system.reach, 1)
        self.groups = _coupled(system)
        self._bands = -(-self.size[0] // self.band)
        self._factors = [self._factor(system, group) for group in self.groups]

    def solve(self, right: Tensor) -> Tensor:
        """Solve for right-hand sides (B,3,H,W)."""
        solution = torch.empty_like(right)
        for group, (inverses, below) in zip(self.groups, self._factors, strict=True):
            rows = self._to_bands(right[:, group])
            for band in range(self._bands):
                if band:
                    rows[band] -= below[band - 1] @ rows[band - 1]
                rows[band] = inverses[band] @ rows[band]
            for band in reversed(range(self._bands)):
                if band + 1 < self._bands:
                    rows[band] -= below[band].mT @ rows[band + 1]
                rows[band] = inverses[band].mT @ rows[band]
            solution[:, group] = self._from_bands(rows, len(group))
        return solution

    def _factor(self, system: LocalSystem, group: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        inverses: list[Tensor] = []
        below: list[Tensor] = []
        identity = None
        for band, (diagonal, coupling) in enumerate(self._blocks(system, group)):
            if band:
                below.append(coupling @ inverses[-1].mT)
                diagonal = diagonal - below[-1] @ below[-1].mT
            lower, failed = torch.linalg.cholesky_ex(diagonal)
            if int(failed):
                raise AttackError(
                    "the attack's linear system is not positive definite within float64; "
                    "raise the option `precision` (the noise it assumes, as a fraction of each channel)"
                )
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device) if identity is None else identity
            inverses.append(torch.linalg.solve_triangular(lower, identity, upper=False))
        return inverses, below

    def _blocks(self, system: LocalSystem, group: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The diagonal block of each band and its coupling to the band above."""
        height, width = self.size
        count = self.band * width * len(group)
        blocks = next(iter(system.entries.values())).new_zeros(2, self._bands, count, count)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        for (first, second, dy, dx), values in system.entries.items():
            if first not in group:
                continue
            inside = (rows + dy >= 0) & (rows + dy < height) & (columns + dx >= 0) & (columns + dx < width)
            y, x = rows[inside], columns[inside]
            band, other_band = y // self.band, (y + dy) // self.band
            kept = other_band <= band
            here = self._index(group.index(first), y, x, len(group))
            there = self._index(group.index(second), y + dy, x + dx, len(group))
            place = ((band - other_band)[kept], band[kept], here[kept], there[kept])
            blocks[tuple(index.to(values.device) for index in place)] = values[inside.to(values.device)][kept]
        beyond = self._bands * self.band - height
        if beyond:
            # the last band is filled up with unknowns that no entry couples
            padding = torch.arange((self.band - beyond) * width * len(group), count)
            blocks[0, -1, padding, padding] = 1
        yield from zip(*blocks, strict=True)

    def _index(self, member: int, y: Tensor, x: Tensor, members: int) -> Tensor:
        return (y % self.band * self.size[1] + x) * members + member

    def _to_bands(self, planes: Tensor) -> Tensor:
        """(B,P,H,W) to (bands, unknowns of a band, B)."""
        batch, members, height, width = planes.shape
        padded = F.pad(planes, (0, 0, 0, self._bands * self.band - height))
        banded = padded.reshape(batch, members, self._bands, self.band, width)
        return banded.permute(2, 3, 4, 1, 0).reshape(self._bands, -1, batch).contiguous()

    def _from_bands(self, rows: Tensor, members: int) -> Tensor:
        height, width = self.size
        banded = rows.reshape(self._bands, self.band, width, members, -1).permute(4, 3, 0, 1, 2)
        return banded.reshape(-1, members, self._bands * self.band, width)[:, :, :height]


def _coupled(system: LocalSystem) -> list[list[int]]:
    """Planes that share entries, as lists in order."""
    groups = [{0}, {1}, {2}]
    for first, second, _, _ in system.entries:
        joined = set().union(*(group for group in groups if first in group or second in group))
        groups = [group for group in groups if not group & joined] + [joined]
    return sorted(sorted(group) for group in groups)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
    tolerance: float = 1e-6,
) -> Tensor:
    """Solve `apply(x) = right` for each row of (B,...), from `start`, for a symmetric positive definite `apply`.

    Stops when every residual is below `tolerance` of its right-hand side, or after `iterations` (Hestenes and Stiefel
    1952, with a preconditioner).
    """
    solution = start.clone()
    residual = right - apply(solution)
    goal = tolerance * _norm(right)
    direction = torch.zeros_like(right)
    previous = None
    for _ in range(iterations):
        if bool((_norm(residual) <= goal).all()):
            break
        better = precondition(residual)
        slope = _inner(residual, better)
        direction = better if previous is None else better + slope / previous * direction
        image = apply(direction)
        length = slope / _inner(direction, image).clamp_min(1e-300)
        solution += length * direction
        residual -= length * image
        previous = slope.clamp_min(1e-300)
    return solution


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of each row, shaped to multiply rows."""
    return (first * second).flatten(1).sum(1).view(-1, *[1] * (first.ndim - 1))


def _norm(rows: Tensor) -> Tensor:
    return _inner(rows, rows).sqrt()
