# SPDX-License-Identifier: Apache-2.0
"""The legacy protocol against the golden files and against a loop over pairs, thresholds and folds."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from recognition.errors import UserError
from recognition.evaluation.verification import (
    THRESHOLDS,
    VerificationResult,
    check_pairs,
    evaluate,
    evaluate_distances,
    pair_distances,
    pixel_similarity,
    verify,
)


class ImagePairs(NamedTuple):
    """A stand-in for recognition.data.verification_set.VerificationSet, which needs OpenCV."""

    name: str
    images: np.ndarray
    issame: np.ndarray


def random_pairs(count: int, seed: int = 0, dimensions: int = 16):
    random = np.random.default_rng(seed)
    issame = random.random(count) < 0.5
    embeddings = random.normal(size=(2 * count, dimensions))
    embeddings[1::2][issame] = embeddings[0::2][issame] + random.normal(size=(issame.sum(), dimensions))
    return embeddings.astype(np.float32), issame


def rates(distances, issame, threshold):
    """(tpr, fpr, accuracy) by counting."""
    accepted = distances < threshold
    hits, alarms = np.sum(accepted & issame), np.sum(accepted & ~issame)
    tpr, fpr = hits / max(1, issame.sum()), alarms / max(1, (~issame).sum())
    return tpr, fpr, np.mean(accepted == issame)


def by_loops(distances, issame, folds):
    """The protocol, word for word."""
    tprs, fprs, accuracies = [], [], []
    for others, fold in KFold(folds).split(distances):
        best = np.argmax([rates(distances[others], issame[others], threshold)[2] for threshold in THRESHOLDS])
        curve = [rates(distances[fold], issame[fold], threshold) for threshold in THRESHOLDS]
        tprs.append([point[0] for point in curve])
        fprs.append([point[1] for point in curve])
        accuracies.append(curve[best][2])
    return np.mean(tprs, axis=0), np.mean(fprs, axis=0), accuracies


@pytest.mark.parametrize("name", ["easy", "hard"])
def test_golden(shared, name):
    golden = np.load(shared / "legacy" / "verification" / f"{name}.npz", allow_pickle=False)
    result = evaluate(golden["embeddings"], golden["issame"])
    # Equal, not only close: the same counts divided by the same numbers, no distance within rounding of a threshold.
    np.testing.assert_array_equal(result.tpr, golden["tpr"])
    np.testing.assert_array_equal(result.fpr, golden["fpr"])
    np.testing.assert_array_equal(result.accuracies, golden["accuracy"])
    assert (result.mean, result.std) == (np.mean(golden["accuracy"]), np.std(golden["accuracy"]))


@pytest.mark.parametrize("count, folds", [(10, 10), (57, 10), (99, 10), (40, 3), (6, 2)])
def test_against_loops_where_pairs_do_not_divide_into_folds(count, folds):
    embeddings, issame = random_pairs(count, seed=count)
    result = evaluate(embeddings, issame, folds)
    tpr, fpr, accuracies = by_loops(result.distances, issame, folds)
    np.testing.assert_allclose(result.tpr, tpr, atol=1e-15)  # means over the folds in another order
    np.testing.assert_allclose(result.fpr, fpr, atol=1e-15)
    np.testing.assert_array_equal(result.accuracies, accuracies)
    assert result.auc == pytest.approx(roc_auc_score(issame, -result.distances), abs=1e-14)


def test_distances_on_thresholds_and_folds_of_one_class():
    issame = np.arange(40) < 20  # sorted by class: most folds hold one class only
    distances = np.random.default_rng(3).choice(THRESHOLDS[[0, 1, 100, 101, 399]], size=40)
    result = evaluate_distances(distances, issame)
    tpr, fpr, accuracies = by_loops(distances, issame, 10)
    np.testing.assert_allclose(result.tpr, tpr, atol=1e-15)
    np.testing.assert_allclose(result.fpr, fpr, atol=1e-15)
    np.testing.assert_array_equal(result.accuracies, accuracies)


def test_of_equally_good_thresholds_the_lowest_is_taken():
    distances = np.where(np.arange(20) % 2 == 0, 0.505, 3.0)
    result = evaluate_distances(distances, np.arange(20) % 2 == 0)
    np.testing.assert_array_equal(result.best_thresholds, np.full(10, THRESHOLDS[51]))
    assert (result.mean, result.std, result.auc) == (1, 0, 1)


def test_distances_are_those_of_normalised_rows():
    embeddings, _ = random_pairs(700, dimensions=512)  # more than one block
    exact = embeddings.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    expected = 2 - 2 * np.sum(exact[0::2] * exact[1::2], axis=1)
    np.testing.assert_allclose(pair_distances(embeddings), expected, atol=1e-14)  # float64, another formula
    np.testing.assert_allclose(pair_distances(1e4 * embeddings), expected, atol=1e-14)


@pytest.mark.parametrize("value, found", [(np.nan, "is not finite"), (np.inf, "is not finite"), (0, "is zero")])
def test_an_embedding_without_a_direction_is_named(value, found):
    embeddings, issame = random_pairs(700, dimensions=512)
    embeddings[1333] = value
    with pytest.raises(UserError, match=f"^lfw: the embedding of image 1333 {found}, expected a direction$"):
        evaluate(embeddings, issame, name="lfw")


@pytest.mark.parametrize("issame, message", [
    ([True] * 10, "^lfw: all 10 pairs are of the same identity, expected pairs of both kinds$"),
    ([False] * 10, "^lfw: all 10 pairs are of different identities, expected pairs of both kinds$"),
    ([True, False] * 4, "^lfw: found 8 pairs, expected at least one for each of 10 folds$"),
    ([], "^lfw: found 0 pairs, expected at least one for each of 10 folds$"),
])
def test_sets_that_cannot_be_scored(issame, message):
    with pytest.raises(UserError, match=message):
        check_pairs(issame, name="lfw")
    with pytest.raises(UserError, match=message):
        evaluate(np.ones((2 * len(issame), 4)), issame, name="lfw")


def test_embeddings_that_do_not_fit_the_pairs():
    with pytest.raises(UserError, match=r"^pairs: found 19 embeddings for 10 pairs, expected two a pair$"):
        evaluate(np.ones((19, 4)), [True, False] * 5)


def image_pairs(count: int = 12, size: int = 8) -> ImagePairs:
    """Pairs of one identity are an image and a noisy copy."""
    random = np.random.default_rng(5)
    images = random.integers(0, 256, size=(2 * count, 3, size, size), dtype=np.uint8)
    issame = np.arange(count) % 2 == 0
    noise = random.integers(-20, 21, size=images[0::2].shape)
    images[1::2][issame] = np.clip(images[0::2].astype(int) + noise, 0, 255)[issame]
    return ImagePairs("toy", images, issame)


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_verify_adds_the_mirror_and_reports_the_norm_of_both_views(batch_size):
    pairs = image_pairs()
    projection = np.random.default_rng(6).normal(size=(3 * 8 * 8, 16)).astype(np.float32)
    seen = []

    def embed(images):
        assert images.dtype == np.uint8 and images.flags.c_contiguous and len(images) <= 2 * batch_size
        seen.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32) @ projection

    result = verify(embed, pairs, batch_size)
    flat, mirrored = (view.reshape(24, -1).astype(np.float64) @ projection
                      for view in (pairs.images, pairs.images[..., ::-1]))
    expected = evaluate(flat + mirrored, pairs.issame)
    assert isinstance(result, VerificationResult) and result.name == "toy"
    np.testing.assert_allclose(result.distances, expected.distances, atol=1e-5)  # float32 sums of 192 terms
    np.testing.assert_array_equal(result.accuracies, expected.accuracies)
    norms = np.linalg.norm(np.concatenate([flat, mirrored]), axis=1)
    assert result.xnorm == pytest.approx(norms.mean(), rel=1e-5)
    assert sum(seen) == 48


def test_verify_names_the_set():
    with pytest.raises(UserError, match=r"^toy: the embedding of image 0 is not finite"):
        verify(lambda images: np.full((len(images), 4), np.nan, np.float32), image_pairs(), 8)
    with pytest.raises(UserError, match=r"^toy: found 9 pairs"):
        verify(lambda images: pytest.fail("must not be called"), image_pairs(9), 8)


def test_pixel_similarity_is_correlation():
    pairs = image_pairs(20, size=40)
    pairs.images[7] = 90  # of one grey: correlates with none
    result = pixel_similarity(pairs)
    grey = np.einsum("nchw,c->nhw", pairs.images, [0.299, 0.587, 0.114]).reshape(40, -1)
    expected = [2 - 2 * np.corrcoef(grey[2 * pair], grey[2 * pair + 1])[0, 1] for pair in range(20) if pair != 3]
    np.testing.assert_allclose(np.delete(result.distances, 3), expected, atol=1e-5)  # float32 pixels
    assert result.distances[3] == pytest.approx(2)
    assert result.mean >= 0.9


def test_pixel_similarity_does_not_see_brightness_and_contrast():
    pairs = image_pairs()
    dimmed = pairs._replace(images=(pairs.images // 2 + 30).astype(np.uint8))
    np.testing.assert_allclose(pixel_similarity(dimmed).distances, pixel_similarity(pairs).distances, atol=0.02)  # //
