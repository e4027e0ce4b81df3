"""The front end that learning attacks share: from any payload to planes, kinds and a first estimate of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppfr.attacks.attacker import Attacker, spread
from ppfr.attacks.learned.payload_clusters import Kinds, channel_energies
from ppfr.attacks.learned.payload_maps import PayloadPlanes
from ppfr.attacks.learned.training_pairs import Examples
from ppfr.attacks.learned.wiener_filter import WienerFilter
from ppfr.methods.common.payload import Payload

# planes held at once to learn from, in half precision
_BYTES = 1 << 28
# payloads that settle the planes' scales, and looks at each kind
_SAMPLE, _LOOKS = 16, 48
# one in so many examples is held out to choose by
_HELD_OUT = 8
_STREAM, _LESSONS = 1, 3


class Views(NamedTuple):
    """A payload as networks take it: `image` (B,3,H,W) in [-1,1], the best linear estimate; planes and numbers."""

    image: Tensor
    planes: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class Looks:
    """Payloads that were looked at, as planes in half precision and numbers, and which example each is of."""

    planes: Tensor
    numbers: Tensor
    kinds: Tensor
    rows: Tensor


class Front:
    """Turns payloads into `Views`; learned from examples in closed form, without training.

    `learning` and `held_out` are the examples that it learned from and those kept aside to choose by.
    """

    def __init__(self, examples: Examples, attacker: Attacker) -> None:
        self.examples = examples
        generator = attacker.generator(_STREAM)
        # sets of faces are sorted by person, so the last ones are of others than the first
        split = len(examples) - len(examples) // _HELD_OUT
        self.learning, self.held_out = list(range(split)), list(range(split, len(examples)))
        sample = examples.seen([self.learning[row] for row in spread(len(self.learning), _SAMPLE)], generator)
        self._planes = PayloadPlanes(sample, attacker.input_size)
        self.channels, self.length = self._planes.channels, self._planes.length
        kinds = Kinds.discover(examples, self._planes, generator)
        rows = self._looks(len(kinds))
        planes = torch.empty(
            (len(rows), self.channels, *attacker.input_size), dtype=torch.float16, device=attacker.device
        )
        numbers, energies = [], []
        done = 0
        for payload in examples.in_portions(rows, generator):
            attacker.progress(done, len(rows))
            seen = self._planes.planes(payload)
            planes[done : done + len(seen)] = seen
            done += len(seen)
            numbers.append(self._planes.numbers(payload))
            energies.append(channel_energies(seen))
        energy = torch.cat(energies)
        self._kinds = kinds.fitted(energy)
        index = torch.tensor(rows, device=energy.device)
        self._held = Looks(planes, torch.cat(numbers), self._kinds.nearest(energy), index)
        self._wiener = WienerFilter(self._held.planes, self._held.kinds, len(kinds), examples.images[index])

    def _looks(self, kinds: int) -> list[int]:
        """Which examples to look at, some more than once where there are many kinds, as far as memory allows."""
        each = max(1, self.channels * self._planes.size[0] * self._planes.size[1] * 2)
        count = len(self.learning)
        most = min(max(1, _BYTES // each), max(count, _LOOKS * kinds))
        if most <= count or not self.examples.fresh:
            return [self.learning[row] for row in spread(count, most)]
        return [self.learning[look % count] for look in range(most)]

    @torch.no_grad()
    def __call__(self, payload: Payload) -> Views:
        """What the front end makes of a payload."""
        planes = self._planes.planes(payload)
        return self._views(planes, self._kinds.of(planes), self._planes.numbers(payload))

    def _views(self, planes: Tensor, kinds: Tensor, numbers: Tensor) -> Views:
        normalised = self._wiener.normalised(planes, kinds)
        return Views(self._wiener(normalised, kinds), normalised, numbers)

    @torch.no_grad()
    def lessons(self, steps: int, batch: int, generator: torch.Generator) -> Iterator[tuple[Views, Tensor]]:
        """`steps` batches to learn from, and which examples (B,) they are of.

        First come the payloads that were looked at already, in random order; then other looks at all faces.
        """
        order: list[int] = []
        epoch = -1
        for _ in range(steps):
            if len(order) < batch:
                epoch += 1
                count = len(self._held.rows) if epoch == 0 else len(self.learning)
                order = torch.randperm(count, generator=generator).tolist()
            chosen, order = order[:batch], order[batch:]
            if epoch == 0:
                held = self._held
                views = self._views(held.planes[chosen].float(), held.kinds[chosen], held.numbers[chosen])
                yield views, held.rows[chosen]
            else:
                rows = [self.learning[index] for index in chosen]
                yield self(self.examples.seen(rows, generator)), torch.tensor(rows, device=self._held.rows.device)

    def __str__(self) -> str:
        return f"{self.examples}; {self.channels} planes and {self.length} numbers; {len(self._kinds)} kinds of payload"


def train(
    network: nn.Module,
    front: Front,
    attacker: Attacker,
    loss: Callable[[Views, Tensor], Tensor],
    *,
    steps: int,
    rate: float,
    batch: int,
) -> None:
    """Train a network on what the front end makes of examples, then freeze it.

    `loss` is that of some views and the examples (B,) they are of; AdamW's learning rate rises to `rate` and falls
    again as half a sine wave. Norms keep their statistics, for batches are small.
    """
    network.eval()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    for step, (views, rows) in enumerate(front.lessons(steps, batch, attacker.generator(_LESSONS))):
        for group in optimiser.param_groups:
            group["lr"] = rate * math.sin(math.pi * (step + 0.5) / steps)
        with torch.enable_grad():
            found = loss(views, rows)
            optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        attacker.progress(step + 1, steps)
    network.requires_grad_(False)


@torch.no_grad()
def learn_front(attacker: Attacker) -> Front:
    """The front end for a target, learned once for all attacks on it with the same faces and seed."""

    def learn() -> Front:
        return Front(Examples(attacker), attacker)

    return attacker.shared(learn)
