from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ppfr.data.faceset import FaceSet
from ppfr.data.images import to_tensor
from ppfr.data.pairs import PairedImages, PairSet, draw_pairs
from ppfr.evaluation.evaluate import embed_faces, evaluate_pairs, open_evaluation
from ppfr.evaluation.metrics.verification import verification
from ppfr.networks import load_recogniser
from ppfr.util.errors import DataError


def save(faces: FaceSet, folder: Path) -> Path:
    for label, name, image in zip(faces.labels, faces.names, faces.images(), strict=True):
        (folder / f"p{label}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"p{label}" / name), image[..., ::-1])
    return folder


def test_flip_adds_a_second_query(tiny: Any, faces: FaceSet) -> None:
    found = embed_faces(tiny, faces, seed=5)
    images = to_tensor(faces.images())
    upright, mirrored = torch.Generator().manual_seed(10), torch.Generator().manual_seed(11)
    tiny.eval()
    expected = tiny(images, upright) + tiny(images.flip(-1), mirrored)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    assert found.dtype == np.float32
    alone = embed_faces(tiny, faces, seed=5, flip=False)
    upright.manual_seed(10)
    np.testing.assert_allclose(alone, tiny(images, upright).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_draws_come_from_the_seed_alone(tiny: Any, faces: FaceSet) -> None:
    torch.manual_seed(0)
    one = embed_faces(tiny, faces, batch_size=7)
    torch.manual_seed(1)
    other = embed_faces(tiny, faces.images(), batch_size=60)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert np.abs(embed_faces(tiny, faces, seed=1) - one).max() > 0.1
    # the same image twice is two queries with two draws
    twice = embed_faces(tiny, faces, np.zeros(20, np.int64), flip=False)
    assert len(np.unique(twice.round(3), axis=0)) == 3


def test_rows_batches_and_progress(tiny: Any, faces: FaceSet) -> None:
    seen: list[tuple[int, int]] = []
    tiny.train()
    found = embed_faces(
        tiny,
        faces,
        [5, 3, 9],
        batch_size=2,
        flip=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found.shape == (3, 8)
    assert seen == [(2, 3), (3, 3)]
    assert tiny.batches == [2, 1]
    # dropout was off, and is on again
    assert tiny.training
    assert tiny.server[0].training
    np.testing.assert_array_equal(found, embed_faces(tiny, faces, [5, 3, 9], batch_size=2, flip=False))


def test_labelled_set_end_to_end(tiny: Any, faces: FaceSet) -> None:
    result = evaluate_pairs(tiny, faces, genuine=100, impostor=100, replicates=50)
    assert (result.genuine, result.impostor) == (100, 100)
    assert result.accuracy > 0.9
    assert "10 people" in result.interval
    pairs = draw_pairs(faces.labels, genuine=100, impostor=100)
    # all sixty images occur in the pairs, so their draws are those of the whole set
    assert len(set(pairs.first) | set(pairs.second)) == 60
    embeddings = embed_faces(tiny, faces)
    expected = verification(
        embeddings[pairs.first],
        embeddings[pairs.second],
        pairs.same,
        groups=(faces.labels[pairs.first], faces.labels[pairs.second]),
        replicates=50,
    )
    assert result == expected


def test_only_images_in_pairs_are_embedded_and_once(tiny: Any, faces: FaceSet) -> None:
    first, second = np.array([0, 0, 50, 7]), np.array([1, 50, 51, 0])
    same = faces.labels[first] == faces.labels[second]
    pairs = PairSet("four", first, second, same)
    result = evaluate_pairs(tiny, PairedImages(pairs, faces.images()), flip=False, folds=2, replicates=10)
    assert result.pairs == 4
    assert "4 pairs" in result.interval
    assert tiny.batches == [5]


def test_sources_open_as_what_they_are(tiny: Any, faces: FaceSet, tmp_path: Path) -> None:
    folder = save(faces, tmp_path / "people")
    assert isinstance(open_evaluation(folder), FaceSet)
    pair_list = tmp_path / "pairs.csv"
    rows = ["people/p0/0.png,people/p0/1.png,1", "people/p0/0.png,people/p1/6.png,0"]
    pair_list.write_text("path_a,path_b,same\n" + "\n".join(rows) + "\n")
    listed = open_evaluation(pair_list)
    assert isinstance(listed, PairedImages)
    assert (len(listed.pairs), len(listed.images)) == (2, 3)
    assert evaluate_pairs(tiny, pair_list, replicates=10, folds=2).pairs == 2
    from_folder = evaluate_pairs(tiny, folder, genuine=50, impostor=50, replicates=10)
    assert from_folder.pairs == 100
    with pytest.raises(DataError, match="10 folds of 2 pairs"):
        evaluate_pairs(tiny, pair_list)
    with pytest.raises(DataError, match="no such data set"):
        evaluate_pairs(tiny, tmp_path / "absent")


def test_splits_give_their_test_people(faces: FaceSet, tmp_path: Path) -> None:
    save(faces, tmp_path / "people")
    for name, people in (("train", range(6)), ("test", range(6, 10))):
        rows = [f"people/p{n // 6}/{n}.png,p{n // 6}" for n in range(60) if n // 6 in people]
        (tmp_path / f"{name}.csv").write_text("path,identity\n" + "\n".join(rows) + "\n")
    opened = open_evaluation(tmp_path)
    assert isinstance(opened, FaceSet)
    assert opened.identities == ["p6", "p7", "p8", "p9"]


def test_bin_file_and_a_recogniser(shared: Path, tiny: Any) -> None:
    source = shared / "golden" / "tfrecord" / "small_lfw.bin"
    assert evaluate_pairs(tiny, source, replicates=10).pairs == 10
    result = evaluate_pairs(load_recogniser(shared / "models" / "mobilefacenet_ms1m.onnx"), source, replicates=10)
    assert (result.genuine, result.impostor, result.auc) == (10, 0, None)
    assert result.accuracy >= 0.8


def test_judge_tells_real_faces_apart(shared: Path) -> None:
    judge = load_recogniser(shared / "models" / "mobilefacenet_ms1m.onnx")
    faces = open_evaluation(shared / "faces" / "test.csv")
    assert isinstance(faces, FaceSet)
    few = faces.subset(np.arange(0, len(faces), 15))
    result = evaluate_pairs(judge, few, genuine=40, impostor=400, flip=False, replicates=50)
    assert result.auc is not None
    assert result.auc > 0.95


def test_refusals(tiny: Any, faces: FaceSet) -> None:
    with pytest.raises(DataError, match="batch_size is 0"):
        embed_faces(tiny, faces, batch_size=0)
    with pytest.raises(DataError, match="no face to embed"):
        embed_faces(tiny, faces, [])
    with pytest.raises(DataError, match="images are float64"):
        embed_faces(tiny, np.zeros((1, 112, 112, 3)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="there is no image 60"):
        embed_faces(tiny, faces, [60])
