from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from ppfr.data.pairs import PairSet, draw_pairs
from ppfr.data.sources import holds_splits, open_faces, open_splits
from ppfr.data.synthetic.faces import SyntheticFaces
from ppfr.data.synthetic.geometry import Expression
from ppfr.data.synthetic.person import Person
from ppfr.data.synthetic.pose import TEMPLATE, meet_relief, similarity, view_rays
from ppfr.data.synthetic.traits import Shot, draw_hair, draw_shot, draw_traits
from ppfr.util.errors import DataError


def plain_shot(**changes: object) -> Shot:
    """A frontal, neutral picture in even light by a perfect camera."""
    shot = replace(
        draw_shot(np.random.default_rng(0)),
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        smile=0.0,
        mouth_open=0.0,
        eyelids=1.0,
        brows=0.0,
        gaze=(0.0, 0.0),
        light=np.array([0.0, 0.0, 1.0]),
        lamp=0.5,
        light_colour=np.ones(3),
        sheen=0.0,
        exposure=1.0,
        white_balance=np.ones(3),
        contrast=1.0,
        blur=0.0,
        noise=0.0,
        misalignment=np.zeros((5, 2)),
        glasses=0.0,
        stubble=0.0,
    )
    return replace(shot, **changes)


def person(number: int = 3) -> Person:
    rng = np.random.default_rng(number)
    traits = draw_traits(rng)
    somebody = Person(traits, rng)
    somebody.wear(draw_hair(traits, rng), rng)
    return somebody


def take(somebody: Person, **changes: object) -> np.ndarray:
    return somebody.photograph(plain_shot(**changes), np.random.default_rng(1)).astype(int)


class TestSet:
    def test_it_is_a_face_set(self):
        faces = SyntheticFaces(3, 2)
        assert (len(faces), faces.identities) == (6, ["train0000", "train0001", "train0002"])
        assert faces.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert faces.images().shape == (6, 112, 112, 3)
        assert faces.images().dtype == np.uint8
        assert faces.skipped == []
        assert len(np.unique(faces.images().reshape(6, -1), axis=0)) == 6

    def test_a_picture_is_a_function_of_its_numbers(self):
        whole = SyntheticFaces(3, 5, seed=4).images()
        one_by_one = SyntheticFaces(3, 5, seed=4)
        for index in (14, 0, 7, 3):
            np.testing.assert_array_equal(one_by_one.image(index), whole[index])
        larger = SyntheticFaces(4, 6, seed=4)
        np.testing.assert_array_equal(larger.images([6, 7, 10]), whole[[5, 6, 9]])

    def test_seeds_and_parts_hold_other_people(self):
        sets = [SyntheticFaces(1, 1, seed=seed, part=part).image(0) for seed in (0, 1) for part in ("train", "test")]
        assert len(np.unique(np.stack(sets).reshape(4, -1), axis=0)) == 4

    def test_other_sizes_show_the_same_face(self):
        small, large = (SyntheticFaces(1, 1, size=size).image(0) for size in (112, 168))
        assert large.shape == (168, 168, 3)
        resized = cv2.resize(large, (112, 112), interpolation=cv2.INTER_AREA).astype(int)
        smooth = [cv2.GaussianBlur(image.astype(np.float32), (0, 0), 2) for image in (small, resized)]
        assert np.abs(smooth[0] - smooth[1]).mean() < 4

    def test_splits_share_nobody(self):
        train, test = open_splits("synthetic:people=8,images=2,seed=1")
        assert (len(train.identities), len(test.identities)) == (8, 20)
        assert not set(train.identities) & set(test.identities)
        assert holds_splits("synthetic")
        assert len(open_splits("synthetic:people=100,images=1")[1]) == 25
        assert open_faces("synthetic: people=8, images=2, seed=1").names == train.names
        assert (len(open_faces("synthetic")), len(open_faces("synthetic:"))) == (4000, 4000)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("synthetic:faces=3", r"unknown key 'faces'; expected people, images, seed"),
            ("synthetic:people", r"people=''; expected a whole number, as in people=200"),
            ("synthetic:seed=-1", r"seed='-1'; expected a whole number"),
            ("synthetic:images=2.5", r"images='2\.5'; expected a whole number"),
            ("synthetic:people=0", r"people=0, images=20, seed=0, size=112; expected at least 1"),
        ],
    )
    def test_a_wrong_specification(self, spec: str, message: str):
        with pytest.raises(DataError, match=message):
            open_splits(spec)


class TestDrawing:
    def test_landmarks_lie_on_the_template(self):
        """In a frontal picture the pupils and nostrils are where a recogniser's alignment puts them."""
        for number in range(4):
            face = take(person(number)).sum(axis=2)
            for x, y in TEMPLATE[:2]:
                row, column = int(y), int(x)
                around = face[row - 5 : row + 6, column - 9 : column + 10]
                darkest = np.unravel_index(around[2:9, 4:15].argmin(), (7, 11))
                assert abs(darkest[0] - 3) <= 3
                assert face[row - 2 : row + 3, column - 2 : column + 3].min() < 0.6 * around.mean()

    def test_turning_brings_the_nose_towards_the_turn(self):
        """The cheek on the far side becomes narrower: its share of the face's width shrinks with the angle."""

        def left_share(yaw: float) -> float:
            shot = plain_shot(yaw=yaw)
            marks = Expression(somebody.traits, shot).landmarks()
            columns, _ = view_rays(somebody.canvas, somebody.surface.relief, marks, shot, somebody.size)
            row = columns[65] / somebody.canvas.scale - 68
            width = somebody.traits.face_width * 0.8
            inside = np.flatnonzero(np.abs(row) < width)
            return float((row[inside] < 0).mean())

        somebody = person()
        shares = [left_share(yaw) for yaw in (-0.3, 0.0, 0.3)]
        assert shares[0] < shares[1] - 0.05 < shares[2] - 0.1

    def test_rays_meet_the_relief_where_a_slow_search_does(self):
        somebody = person()
        shot = plain_shot(yaw=0.35, pitch=-0.15)
        relief = somebody.surface.relief
        size = somebody.size
        columns, rows = np.meshgrid(np.arange(10, 10 + size), np.arange(10, 10 + size))
        columns, rows = columns.astype(np.float32), rows.astype(np.float32)
        step = somebody.canvas.scale * np.tan([shot.yaw, shot.pitch])
        found, _ = meet_relief(relief, columns, rows, step)
        expected = np.full_like(found, np.nan)
        for height in np.arange(relief.max() + 0.01, -0.05, -0.1):
            across, down = columns - height * step[0], rows - height * step[1]
            surface = cv2.remap(
                relief, across.astype(np.float32), down.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
            )
            hit = np.isnan(expected) & (surface >= height)
            expected[hit] = across[hit]
        error = np.abs(found - expected)
        assert np.nanmean(error < 0.5) > 0.97
        assert np.isnan(expected).mean() < 0.2

    def test_light_falls_from_where_the_lamp_is(self):
        left, right = (take(person(), light=np.array([x, 0.0, 0.6]), lamp=0.9) for x in (-0.8, 0.8))
        cheek = np.s_[60:80, 28:42]
        other = np.s_[60:80, 70:84]
        assert left[cheek].mean() > 1.2 * left[other].mean()
        assert right[other].mean() > 1.2 * right[cheek].mean()

    @pytest.mark.parametrize(
        ("change", "rows", "columns"),
        [
            ({"mouth_open": 1.0}, slice(88, 108), slice(40, 72)),
            ({"eyelids": 0.3}, slice(44, 58), slice(28, 84)),
            ({"brows": 2.0}, slice(34, 48), slice(24, 88)),
            ({"glasses": 1.0}, slice(38, 66), slice(18, 94)),
        ],
    )
    def test_expression_and_glasses_change_their_place(self, change: dict[str, float], rows: slice, columns: slice):
        difference = np.abs(take(person(), **change) - take(person()))
        assert difference[rows, columns].mean() > 3
        # elsewhere the picture moves a little, since the mouth is one of the landmarks that align it
        elsewhere = difference.copy()
        elsewhere[rows, columns] = 0
        assert difference[rows, columns].mean() > 2 * elsewhere.mean()

    def test_a_smile_widens_and_lifts_the_mouth(self):
        calm, smiling = (Expression(person().traits, plain_shot(smile=smile)).landmarks()[3:] for smile in (0.0, 1.0))
        assert np.ptp(smiling[:, 0]) > 1.1 * np.ptp(calm[:, 0])
        assert (smiling[:, 1] < calm[:, 1] - 1).all()

    def test_a_bald_head_can_be_photographed(self):
        rng = np.random.default_rng(5)
        bald = take(Person(draw_traits(rng), rng))
        assert np.abs(bald - take(person(5)))[:12].mean() > 5

    @settings(max_examples=12)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_every_draw_gives_a_picture_with_contrast(self, seed: int):
        rng = np.random.default_rng(seed)
        traits = draw_traits(rng)
        somebody = Person(traits, rng)
        somebody.wear(draw_hair(traits, rng), rng)
        face = somebody.photograph(draw_shot(rng), rng)
        assert face.shape == (112, 112, 3)
        assert face[20:100, 25:85].std() > 8
        assert 15 < face.mean() < 245


@given(
    angle=st.floats(-1, 1), scale=st.floats(0.5, 2), x=st.floats(-20, 20), y=st.floats(-20, 20), seed=st.integers(0, 99)
)
def test_similarity_is_the_least_squares_one(angle: float, scale: float, x: float, y: float, seed: int):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    noise = np.random.default_rng(seed).normal(0, 1, (5, 2))
    source = TEMPLATE @ turn.T + (x, y) + noise
    matrix, offset = similarity(source, TEMPLATE)
    # the same as a linear system: [a, b, tx, ty] with matrix [[a, -b], [b, a]]
    rows = [[px, -py, 1, 0] for px, py in source] + [[py, px, 0, 1] for px, py in source]
    a, b, tx, ty = np.linalg.lstsq(np.array(rows), np.concatenate([TEMPLATE[:, 0], TEMPLATE[:, 1]]), rcond=None)[0]
    np.testing.assert_allclose(matrix, [[a, -b], [b, a]], atol=1e-9)
    np.testing.assert_allclose(offset, [tx, ty], atol=1e-7)


class TestDifficulty:
    """Recognition is neither trivial nor impossible, and colour is not what it rests on."""

    @pytest.fixture(scope="class")
    @staticmethod
    def sets() -> tuple[np.ndarray, np.ndarray, np.ndarray, PairSet]:
        train, test = SyntheticFaces(50, 8), SyntheticFaces(20, 8, part="test")
        grey = [
            np.stack(
                [cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (32, 32), None, 0, 0, 3) for face in faces.images()]
            )
            for faces in (train, test)
        ]
        known, others = (images.reshape(len(images), -1).astype(np.float64) for images in grey)
        return known, train.labels, others, draw_pairs(test.labels, genuine=500, impostor=500)

    def accuracy(self, embeddings: np.ndarray, pairs: PairSet) -> float:
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        scores = (unit[pairs.first] * unit[pairs.second]).sum(axis=1)
        return max(
            float(((scores > threshold) == pairs.same).mean())
            for threshold in np.quantile(scores, np.arange(0, 1, 0.01))
        )

    def test_pixels_do_not_recognise(self, sets: tuple[np.ndarray, np.ndarray, np.ndarray, PairSet]):
        known, _, others, pairs = sets
        assert 0.5 < self.accuracy(others - known.mean(axis=0), pairs) < 0.72

    def test_learnt_grey_features_do_but_not_perfectly(self, sets: tuple[np.ndarray, np.ndarray, np.ndarray, PairSet]):
        known, labels, others, pairs = sets
        components = PCA(100, whiten=True, random_state=0).fit(known)
        learner = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.2).fit(components.transform(known), labels)
        assert 0.65 < self.accuracy(learner.transform(components.transform(others)), pairs) < 0.95
