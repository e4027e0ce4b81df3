from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppfr.data.batches import Augmentation, Batch, Batches, augment
from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.util.errors import DataError

STRONG = Augmentation(shift=3, jitter=0.2, grayscale=0.3, blur=0.3)


def noise_set(count: int = 23, size: int = 16) -> FaceSet:
    pictures = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    people = [f"p{index % 5}" for index in range(count)]
    return FaceSet("noise", people, lambda rows: pictures[rows], names=people, size=size)


def epoch(faces: FaceSet, size: int, **options: Any) -> list[Batch]:
    return list(Batches(faces, size, **{"seed": 3, "epoch": 1, **options}))


def same(left: list[Batch], right: list[Batch]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


class TestEpoch:
    def test_shapes_labels_and_range(self):
        faces = noise_set()
        for images, labels, indices in epoch(faces, 8, augmentation=STRONG):
            assert images.shape == (8, 3, 16, 16)
            assert images.dtype == torch.float32
            assert -1 <= images.min() < images.max() <= 1
            assert labels.tolist() == faces.labels[indices].tolist()

    def test_every_image_once_and_in_another_order_each_epoch(self):
        faces = noise_set()
        orders = [
            torch.cat([batch.indices for batch in epoch(faces, 8, epoch=number, drop_last=False)]).tolist()
            for number in range(3)
        ]
        assert all(sorted(order) == list(range(23)) for order in orders)
        assert len({tuple(order) for order in orders}) == 3

    def test_drop_last_leaves_out_different_images(self):
        left_out = []
        for number in range(6):
            batches = epoch(noise_set(), 8, epoch=number)
            assert [len(batch.labels) for batch in batches] == [8, 8]
            left_out.append(set(range(23)) - set(torch.cat([batch.indices for batch in batches]).tolist()))
        assert len(set.union(*left_out)) > 7

    def test_the_same_again_and_another_with_another_seed(self):
        first = epoch(noise_set(), 8, augmentation=STRONG)
        assert same(first, epoch(noise_set(), 8, augmentation=STRONG))
        assert not same(first, epoch(noise_set(), 8, augmentation=STRONG, seed=4))

    def test_no_global_generator_is_read_or_moved(self):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        first = epoch(noise_set(), 8, augmentation=STRONG)
        state = torch.get_rng_state()
        torch.manual_seed(2)
        np.random.seed(2)  # noqa: NPY002
        assert same(first, epoch(noise_set(), 8, augmentation=STRONG))
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())

    def test_the_sets_images_stay_as_they_are(self):
        faces = noise_set()
        before = faces.images()
        epoch(faces, 8, augmentation=STRONG)
        np.testing.assert_array_equal(faces.images(), before)


class TestResume:
    @given(count=st.integers(8, 40), size=st.integers(1, 8), start=st.integers(0, 12), drop=st.booleans())
    def test_resuming_continues_as_if_nothing_had_happened(self, count: int, size: int, start: int, drop: bool):
        faces = noise_set(count, 8)
        whole = epoch(faces, size, augmentation=STRONG, drop_last=drop)
        rest = epoch(faces, size, augmentation=STRONG, drop_last=drop, start_batch=start)
        assert same(whole[start:], rest)
        assert len(Batches(faces, size, seed=3, epoch=1, drop_last=drop, start_batch=start)) == len(whole)

    @pytest.mark.parametrize("start", [0, 1, 99])
    def test_prefetching_changes_nothing(self, start: int):
        options = {"augmentation": STRONG, "start_batch": start}
        assert same(epoch(noise_set(), 4, **options), epoch(noise_set(), 4, prefetch=True, **options))

    def test_an_error_while_prefetching_reaches_the_loop(self):
        def broken(rows: np.ndarray) -> np.ndarray:
            raise DataError("30.png: file not found")

        faces = FaceSet("gone", ["a"] * 8, broken, names=["x"] * 8)
        with pytest.raises(DataError, match=r"30\.png: file not found"):
            epoch(faces, 4, prefetch=True)


class TestRanks:
    @given(world=st.integers(1, 4), share=st.integers(1, 3), count=st.integers(12, 40))
    def test_ranks_share_the_batches_of_a_single_one(self, world: int, share: int, count: int):
        faces = noise_set(count, 8)
        alone = epoch(faces, world * share, augmentation=STRONG)
        ranks = [epoch(faces, world * share, augmentation=STRONG, rank=rank, world=world) for rank in range(world)]
        for number, whole in enumerate(alone):
            for rank in range(world):
                assert all(
                    torch.equal(part, full[rank::world]) for part, full in zip(ranks[rank][number], whole, strict=True)
                )
                assert len(ranks[rank][number].labels) == share

    def test_ranks_cover_the_data_exactly_once(self):
        faces = noise_set(21)
        indices = [
            index
            for rank in range(3)
            for batch in epoch(faces, 6, rank=rank, world=3, drop_last=False)
            for index in batch.indices.tolist()
        ]
        assert sorted(indices) == list(range(21))


class TestRefusals:
    def test_sizes_that_do_not_fit(self):
        with pytest.raises(DataError, match=r"batch_size 8 for rank 0 of 3; expected a multiple of the ranks"):
            epoch(noise_set(), 8, world=3)
        with pytest.raises(DataError, match="rank 2 of 2"):
            epoch(noise_set(), 8, rank=2, world=2)
        with pytest.raises(DataError, match="23 images do not fill a batch of 24"):
            epoch(noise_set(), 24)
        with pytest.raises(DataError, match="the last batch has 1 images for 2 ranks"):
            epoch(noise_set(), 22, world=2, drop_last=False)

    def test_negative_numbers(self):
        with pytest.raises(DataError, match=r"epoch -1, start_batch 0; expected none below 0"):
            epoch(noise_set(), 8, epoch=-1)

    def test_a_batch_that_is_not_there(self):
        with pytest.raises(DataError, match=r"there is no batch 2; the epoch has 0\.\.1"):
            Batches(noise_set(), 8, seed=0, epoch=0).batch(2)

    @pytest.mark.parametrize(("option", "value"), [("shift", -1), ("jitter", 1.5), ("blur", -0.1)])
    def test_augmentation_out_of_range(self, option: str, value: float):
        with pytest.raises(DataError, match=rf"augmentation {option} is {value}; expected 0\.\."):
            Augmentation(**{option: value})


class TestAugmentation:
    images = noise_set(6).images()
    plain = to_tensor(images)

    def draws(self, **columns: float) -> np.ndarray:
        """Draws that leave an image alone but for the named ones."""
        names = ("flip", "down", "right", "contrast", "brightness", "grayscale", "blur", "sigma")
        still = {
            "flip": 0.9,
            "down": 0.5,
            "right": 0.5,
            "contrast": 0.5,
            "brightness": 0.5,
            "grayscale": 0.9,
            "blur": 0.9,
        }
        row = [columns.get(name, still.get(name, 0.5)) for name in names]
        return np.tile(np.array(row, np.float32), (len(self.images), 1))

    def test_nothing_drawn_changes_nothing(self):
        everything = Augmentation(shift=2, jitter=0.3, grayscale=0.5, blur=0.5)
        torch.testing.assert_close(augment(self.images, self.draws(), everything), self.plain)

    def test_nothing_allowed_changes_nothing(self):
        wild = self.draws(flip=0, down=0, right=0, contrast=0, brightness=0, grayscale=0, blur=0)
        assert torch.equal(augment(self.images, wild, Augmentation(flip=False)), self.plain)

    def test_flip_mirrors(self):
        assert torch.equal(augment(self.images, self.draws(flip=0.1), Augmentation()), self.plain.flip(3))

    def test_shift_moves_and_repeats_the_border(self):
        moved = augment(self.images, self.draws(down=0.0, right=0.99), Augmentation(shift=2))
        assert torch.equal(moved[:, :, 2:, :-2], self.plain[:, :, :-2, 2:])
        assert torch.equal(moved[:, :, 0, :-2], self.plain[:, :, 0, 2:])
        assert torch.equal(moved[:, :, 2:, -1], self.plain[:, :, :-2, -1])

    def test_grayscale_is_luma(self):
        grey = augment(self.images, self.draws(grayscale=0.0), Augmentation(grayscale=0.5))
        luma = torch.einsum("bchw,c->bhw", self.plain, torch.tensor([0.299, 0.587, 0.114]))
        torch.testing.assert_close(grey, luma[:, None].expand_as(grey), atol=1.01 / 127.5, rtol=0)

    def test_jitter_scales_about_the_mean_and_adds(self):
        mean = self.plain.mean(dim=(1, 2, 3), keepdim=True)
        contrast = augment(self.images, self.draws(contrast=0.0), Augmentation(jitter=0.2))
        torch.testing.assert_close(contrast, (mean + 0.8 * (self.plain - mean)))
        bright = augment(self.images, self.draws(brightness=1.0), Augmentation(jitter=0.2))
        torch.testing.assert_close(bright, (self.plain + 0.2).clamp(-1, 1))

    def test_blur_smooths_more_with_a_larger_draw(self):
        roughness = [
            augment(self.images, self.draws(blur=0.0, sigma=sigma), Augmentation(blur=0.5)).std()
            for sigma in (0.0, 0.5, 1.0)
        ]
        assert self.plain.std() > roughness[0] > roughness[1] > roughness[2]

    def test_each_option_happens_as_often_as_asked(self):
        faces = noise_set(200, 8)
        plain = {tuple(image.flatten()) for image in faces.images().astype(np.int16)}
        batch = Batches(faces, 200, seed=0, epoch=0).batch(0)
        back = ((batch.images + 1) * 127.5).round().short().permute(0, 2, 3, 1)
        unflipped = sum(tuple(image.flatten().tolist()) in plain for image in back)
        assert 70 <= unflipped <= 130
