# SPDX-License-Identifier: Apache-2.0
"""Verification: are two images of one identity? Accuracy by the legacy protocol, and the ROC.

The protocol is LFW's, as in the recipes: the pairs are cut in order into folds, and each fold is scored at the
threshold that is best on all others. The embedding of an image is added to that of its mirror and normalised; the
distance of a pair is the squared Euclidean one, 0 to 4.

    python -m common.verification --model PREFIX,EPOCH --data DIR --targets lfw,cfp_fp,agedb_30
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import numpy as np
from numpy.typing import ArrayLike

from recognition.data.images.image import mirror
from recognition.errors import UserError
from recognition.evaluation.roc import Roc, check_both_classes, roc

if TYPE_CHECKING:
    from recognition.data.verification_set import VerificationSet

FOLDS = 10
LEAST_PAIRS = 5  # a fold, to tell from their kinds how a list is ordered
THRESHOLDS = np.arange(0, 4, 0.01)
BLOCK_BYTES = 4 << 20  # of one temporary array, so that it stays in a processor's cache
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of R, G, B in grey, ITU-R BT.601


@dataclass(frozen=True)
class Result:
    """The scores of the pairs of one set."""

    distances: np.ndarray  # float64 (P,)
    issame: np.ndarray  # bool (P,)
    tpr: np.ndarray  # float64 (400,), at THRESHOLDS, mean over the folds
    fpr: np.ndarray  # likewise
    accuracies: np.ndarray  # float64 (folds,)
    best_thresholds: np.ndarray  # float64 (folds,): the threshold of each fold
    roc: Roc  # of all pairs, with a point for each distinct distance

    @property
    def auc(self) -> float:
        """Area under the ROC curve of all pairs."""
        return self.roc.area

    @property
    def mean(self) -> float:
        """Accuracy: the mean over the folds."""
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float:
        """Standard deviation (of the population) of the folds' accuracies."""
        return float(np.std(self.accuracies))


@dataclass(frozen=True)
class VerificationResult(Result):
    """The scores of a network on a verification set."""

    name: str
    xnorm: float  # mean Euclidean norm of the embeddings of all images and of all mirrors, not normalised


def check_pairs(issame: ArrayLike, folds: int = FOLDS, name: str = "pairs") -> None:
    """Check that a set can be scored. Callers do so when they load sets, before they spend time on them.

    :raises UserError: if there are fewer pairs than folds, or if all are of one class.
    """
    pairs = np.asarray(issame, bool)
    if len(pairs) < folds:
        raise UserError(f"{name}: found {len(pairs)} pairs, expected at least one for each of {folds} folds")
    check_both_classes(pairs, name)


def folds_of_one_kind(issame: ArrayLike) -> int:
    """The number of folds, consecutive parts of the pairs, whose pairs are all of one identity or all of two. Where all
    pairs of one kind stand in front, the threshold of a fold is chosen on the other kind for the most part. With fewer
    than :data:`LEAST_PAIRS` a fold chance does it: 0."""
    pairs = np.asarray(issame, bool)
    if len(pairs) < LEAST_PAIRS * FOLDS:
        return 0
    return sum(len(np.unique(part)) == 1 for part in np.array_split(pairs, FOLDS))


class NoDirection(UserError):
    """An embedding is zero or not finite."""


def evaluate(embeddings: np.ndarray, issame: ArrayLike, folds: int = FOLDS, name: str = "pairs") -> Result:
    """Score embeddings by the legacy protocol.

    :param embeddings: float ``(2 P, D)``, normalised or not; rows 2 p and 2 p + 1 are pair p
    :param issame: bool ``(P,)``
    :param name: the beginning of messages
    :raises UserError: as :func:`check_pairs`, and if an embedding is zero or not finite
    """
    count, pairs = len(embeddings), len(np.asarray(issame))
    if count != 2 * pairs:
        raise UserError(f"{name}: found {count} embeddings for {pairs} pairs, expected two a pair")
    return evaluate_distances(pair_distances(embeddings, name), issame, folds, name)


def pair_distances(embeddings: np.ndarray, name: str = "pairs") -> np.ndarray:
    """Squared Euclidean distances of the normalised rows 2 p and 2 p + 1: float64 ``(P,)``.

    :raises NoDirection: if an embedding is zero or not finite.
    """
    distances = np.empty(len(embeddings) // 2)
    for rows in _blocks(embeddings):
        block = embeddings[rows].astype(np.float64)
        squares = np.einsum("nd,nd->n", block, block)
        if not (squares.min() > 0 and np.isfinite(squares).all()):
            first = int(np.argmin((squares > 0) & np.isfinite(squares)))
            found = "is zero" if squares[first] == 0 else "is not finite"
            raise NoDirection(f"{name}: the embedding of image {rows.start + first} {found}, expected a direction")
        block /= np.sqrt(squares)[:, None]
        difference = block[0::2] - block[1::2]
        distances[rows.start // 2:rows.stop // 2] = np.einsum("nd,nd->n", difference, difference)
    return distances


def _blocks(rows: np.ndarray) -> Iterator[slice]:
    """Slices of whole pairs of rows, small enough that they fit BLOCK_BYTES as float64."""
    size = 2 * max(1, BLOCK_BYTES // (16 * max(1, rows[0].size))) if len(rows) else 2
    return (slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size))


def evaluate_distances(distances: np.ndarray, issame: ArrayLike, folds: int = FOLDS, name: str = "pairs") -> Result:
    """Score distances, float64 ``(P,)``, by the legacy protocol: a pair is accepted if it lies below the threshold.

    Folds are those of scikit-learn's KFold without shuffling: the first P mod folds have one pair more. Among equally
    good thresholds the lowest counts.
    """
    same = np.asarray(issame, bool)
    check_pairs(same, folds, name)
    sizes = np.full(folds, len(same) // folds)
    sizes[:len(same) % folds] += 1
    positives, negatives = _accepted(distances, same, sizes)  # true and false accepts
    of_same = np.bincount(np.repeat(np.arange(folds), sizes), weights=same, minlength=folds)[:, None]
    right = positives + (sizes[:, None] - of_same - negatives)
    best = np.argmax(right.sum(axis=0) - right, axis=1)
    return Result(
        distances=distances, issame=same, best_thresholds=THRESHOLDS[best], roc=roc(distances, same, name),
        tpr=np.mean(positives / np.maximum(of_same, 1), axis=0),
        fpr=np.mean(negatives / np.maximum(sizes[:, None] - of_same, 1), axis=0),
        accuracies=right[np.arange(folds), best] / sizes)


def _accepted(distances: np.ndarray, same: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of one identity, and of two, that each threshold accepts in each fold: two int ``(folds, 400)``.
    """
    first_accepting = np.searchsorted(THRESHOLDS, distances, side="right")
    slots = len(THRESHOLDS) + 1  # the last one for pairs that no threshold accepts
    fold = np.repeat(np.arange(len(sizes)), sizes)
    counts = np.bincount((same * len(sizes) + fold) * slots + first_accepting, minlength=2 * len(sizes) * slots)
    accepted = np.cumsum(counts.reshape(2, len(sizes), slots), axis=2)[:, :, :-1]
    return accepted[1], accepted[0]


def verify(embed: Callable[[np.ndarray], np.ndarray], verification_set: VerificationSet,
           batch_size: int) -> VerificationResult:
    """Score a network on a verification set.

    :param embed: images uint8 ``(n, 3, H, W)`` -> embeddings float32 ``(n, D)``, for any n up to twice ``batch_size``
    """
    name, images, issame = verification_set
    check_pairs(issame, FOLDS, name)
    embeddings, xnorm = embed_views(embed, images, batch_size)
    return VerificationResult(**vars(evaluate(embeddings, issame, name=name)), name=name, xnorm=xnorm)


def embed_views(embed: Callable[[np.ndarray], np.ndarray], images: np.ndarray,
                batch_size: int) -> tuple[np.ndarray, float]:
    """Embed images and their mirrors. Returns the sum of both embeddings, float64 ``(n, D)``, and the mean norm of all
    2 n embeddings.

    :param images: uint8 ``(n, 3, H, W)``; ``embed``: as in :func:`verify`
    """
    sums, norms = [], 0.0
    for start in range(0, len(images), batch_size):
        batch = images[start:start + batch_size]
        views = np.empty((2, *batch.shape), np.uint8)  # both in one call, so that no device waits between them
        views[0] = batch
        mirror(views[0], views[1])
        rows = np.asarray(embed(views.reshape(-1, *batch.shape[1:])), np.float64)
        norms += float(np.linalg.norm(rows, axis=1).sum())
        sums.append(rows[:len(batch)] + rows[len(batch):])
    return np.concatenate(sums), norms / (2 * len(images))


def pixel_similarity(verification_set: VerificationSet, folds: int = FOLDS) -> Result:
    """The scores of a comparison of pixels, with nothing learnt: a baseline that a network has to beat.

    An image's embedding is its grey values minus their mean, normalised. So the distance is 2 - 2 r, where r is the
    correlation of the grey values of both images; it is 0 for an image of a single grey. There are no mirrors.
    """
    name, images, issame = verification_set
    correlations = np.empty(len(images) // 2)
    for rows in _blocks(images):
        planes = images[rows].reshape(rows.stop - rows.start, 3, -1).astype(np.float32)
        grey = np.einsum("c,ncp->np", LUMA, planes)
        grey -= grey.mean(axis=1, keepdims=True)
        grey /= np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6)
        correlations[rows.start // 2:rows.stop // 2] = np.einsum("nd,nd->n", grey[0::2], grey[1::2])
    return evaluate_distances(np.maximum(2 - 2 * correlations, 0), issame, folds, name)
