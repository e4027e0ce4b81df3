"""Several sets as one: who is who, and how a batch is shared out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.batches import Augmentation
from ppfr.data.faceset import FaceSet
from ppfr.data.multi_dataset import JointBatches, JointFaces, split_batch
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.util.errors import DataError


def part(name: str, count: int, people: int, value: int) -> FaceSet:
    """Images that tell their set and their number."""
    images = np.full((count, 8, 8, 3), value, np.uint8)
    images[:, 0, 0, 0] = range(count)
    who = [str(n % people) for n in range(count)]
    return FaceSet(name, who, lambda index: images[index], names=[f"{n}" for n in range(count)], size=8)


def joint(**changes: list[float]) -> JointFaces:
    settings = {"shares": [3.0, 1.0], "weights": [1.0, 0.5], **changes}
    return JointFaces([part("a", 24, 4, 10), part("b", 10, 3, 200)], **settings)


def batches(epoch: int = 0, **changes: int) -> JointBatches:
    return JointBatches(joint(), 8, seed=1, epoch=epoch, augmentation=Augmentation(flip=False), **changes)


def test_people_of_one_name_in_two_sets_are_two() -> None:
    faces = joint()
    assert len(faces) == 34 and len(faces.identities) == len(set(faces.identities)) == 7
    assert faces.identities[4] == "b/0" and faces.labels[24] == 4
    image = faces.images([25, 3, 24])
    assert image[:, 0, 0, 0].tolist() == [1, 3, 0]
    assert image[:, 1, 1, 0].tolist() == [200, 10, 200]


def test_a_joint_set_with_drawn_faces_is_synthetic() -> None:
    drawn = SyntheticFaces(2, 1, size=8)
    assert JointFaces([part("a", 4, 2, 0), drawn], [1, 1], [1, 1]).synthetic
    assert not joint().synthetic and not joint().subset([0, 30]).synthetic


def test_each_batch_holds_each_set_by_its_share() -> None:
    found = list(batches())
    assert len(found) == 5  # ten images of b, two a batch
    for batch in found:
        assert (batch.indices[:6] < 24).all() and (batch.indices[6:] >= 24).all()
        assert torch.equal(batch.labels, torch.from_numpy(joint().labels)[batch.indices])
    assert len(torch.cat([batch.indices[6:] for batch in found]).unique()) == 10
    # a has four batches an epoch; its second pass goes on in the next epoch, with nothing left out
    seen = torch.cat([batch.indices[:6] for epoch in range(4) for batch in batches(epoch)])
    assert (seen.bincount() == 5).all()


def test_draws_repeat_and_resume_within_an_epoch() -> None:
    whole = list(batches(2))
    rest = list(batches(2, start_batch=3))
    for batch, expected in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, expected, strict=True))
    ahead = [
        batch.indices
        for batch in JointBatches(joint(), 8, seed=1, epoch=2, augmentation=Augmentation(flip=False), prefetch=True)
    ]
    assert all(torch.equal(mine, theirs.indices) for mine, theirs in zip(ahead, whole, strict=True))


def test_ranks_share_what_one_process_sees() -> None:
    whole = batches().batch(1)
    for rank in range(2):
        mine = batches(rank=rank, world=2).batch(1)
        assert torch.equal(mine.indices, whole.indices[rank::2])
        assert torch.equal(mine.images, whole.images[rank::2])


@given(shares=st.lists(st.floats(0.1, 10), min_size=2, max_size=5), units=st.integers(1, 200), world=st.integers(1, 4))
def test_a_batch_is_split_to_the_last_image(shares: list[float], units: int, world: int) -> None:
    try:
        sizes = split_batch(shares, units * world, world)
    except DataError:
        # the smallest share of what there is must have been less than a whole image, or lost its part to rounding
        assert min(shares) / sum(shares) * units < 1
        return
    assert sum(sizes) == units * world
    for size, share in zip(sizes, shares, strict=True):
        assert size % world == 0 and abs(size / world - share / sum(shares) * units) < 1


def test_what_cannot_be_joined() -> None:
    with pytest.raises(DataError, match=r"cannot join \['a', 'a'\]"):
        JointFaces([part("a", 4, 2, 0), part("a", 4, 2, 0)], [1, 1], [1, 1])
    with pytest.raises(DataError, match=r"expected one above 0 for each set"):
        joint(shares=[1.0, 0.0])
    with pytest.raises(DataError, match=r"a batch of 8 images over 4 ranks cannot be split by the shares \[9, 1\]"):
        split_batch([9, 1], 8, 4)
