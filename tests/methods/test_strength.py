"""The comparison `strength`: of what travels, each step to a stronger setting leaves clearly less of the image."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ppfr
from ppfr.data.images import to_tensor
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.experiments.comparison import ComparisonEntry, load_comparison
from ppfr.methods import Method
from ppfr.methods.cloak import Cloak


def family(entry: ComparisonEntry) -> str:
    return str(entry.set["options"].get("kind", entry.method))


# weakest first, as the file says
SERIES = {name: list(entries) for name, entries in groupby(load_comparison("strength").methods, family)}
STEPS = 25


@pytest.fixture(scope="module")
def faces() -> Tensor:
    return to_tensor(SyntheticFaces(people=12, images=2).images(range(24)))


def made(entry: ComparisonEntry) -> Method:
    more = {"components": 16} if entry.method == "peep" else {}
    return ppfr.create(entry.method, "mobilefacenet", width=0.25, embedding_size=32, **entry.set["options"], **more)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learn_noise(method: Method, faces: Tensor) -> None:
    """A few steps of Cloak's noise against a frozen recogniser whose embeddings are to stay as they are."""
    recogniser, noise, _ = method.stages()
    trunk = recogniser.module.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(noise.module.parameters(), lr=0.1)
    for step in range(STEPS):
        batch = faces[4 * (step % 6) :][:4]
        found = noise.forward(batch, torch.arange(4), drawn(step))
        kept = 1 - F.cosine_similarity(found.embedding, trunk(batch)).mean()
        optimizer.zero_grad()
        (10 * kept + found.losses["noise"]).backward()
        optimizer.step()


@torch.no_grad()
def likeness(method: Method, faces: Tensor) -> float:
    """Correlation of the payload with what the same client sends of these faces when nothing is taken away."""
    (sent,) = method.protect(faces, drawn(1)).tensors.values()
    weakened = method.weakened()
    clear = faces if weakened is None else next(iter(weakened.apply(faces).values()))
    pair = torch.stack([sent.float().flatten(), clear.flatten()])
    return float(torch.corrcoef(pair)[0, 1])


def test_three_strengths_of_each() -> None:
    kinds = {"gaussian", "median", "pixelate", "black-box", "downscale"}
    assert set(SERIES) == {"dctdp", "peep", "cloak", *kinds}
    assert all(len(entries) == 3 for entries in SERIES.values())


@pytest.mark.parametrize("name", SERIES)
def test_stronger_leaves_less(name: str, faces: Tensor) -> None:
    found = []
    for entry in SERIES[name]:
        method = made(entry)
        if isinstance(method, Cloak):
            learn_noise(method, faces)
            method.client.suppress(method.options.suppressed)
        else:
            calibrate = method.stages()[0].calibrate
            assert calibrate is not None
            calibrate(faces, drawn())
        found.append(likeness(method, faces[:4]))
    weak, middle, strong = (r**2 / (1 - r**2) for r in found)
    # signal over what was lost
    assert weak > 1.3 * middle > 1.3**2 * strong > 0, found
