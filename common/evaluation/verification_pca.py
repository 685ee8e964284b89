# SPDX-License-Identifier: Apache-2.0
"""The legacy protocol with its PCA option: each fold is scored after a PCA that the other folds were fitted with."""
from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold

from recognition.errors import UserError
from recognition.evaluation.verification import FOLDS, Result, check_pairs, evaluate_distances, pair_distances


def evaluate_pca(embeddings: np.ndarray, issame: ArrayLike, components: int, folds: int = FOLDS,
                 name: str = "pairs") -> Result:
    """Score embeddings, float ``(2 P, D)``, by :func:`recognition.evaluation.verification.evaluate`, after a PCA for
    each fold.

    The PCA is fitted to the normalised embeddings of all other folds; its output is normalised again. The fold's
    threshold is the best one for the other folds after the same PCA. The distance of a pair in the result, and the
    rates and curves, come from the PCA that was fitted without it.

    :raises UserError: as ``evaluate``, and if there are more components than numbers, or than images to fit.
    """
    same = np.asarray(issame, bool)
    check_pairs(same, folds, name)
    pair_distances(embeddings, name)  # raises if an embedding is zero or not finite
    unit = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    splits = list(KFold(folds).split(same))
    most = min(unit.shape[1], 2 * min(len(others) for others, _ in splits))
    if not 1 <= components <= most:
        raise UserError(f"{name}: found --pca {components}, expected 1 to {most}, as many as an embedding has numbers "
                        "and as there are images to fit to")
    held_out, accuracies, thresholds = np.empty(len(same)), np.empty(folds), np.empty(folds)
    for fold, (others, chosen) in enumerate(splits):
        fitted = PCA(components, svd_solver="full").fit(unit[np.concatenate([2 * others, 2 * others + 1])])
        distances = pair_distances(fitted.transform(unit), name)
        scored = evaluate_distances(distances, same, folds, name)
        held_out[chosen] = distances[chosen]
        accuracies[fold], thresholds[fold] = scored.accuracies[fold], scored.best_thresholds[fold]
    return dataclasses.replace(evaluate_distances(held_out, same, folds, name), accuracies=accuracies,
                               best_thresholds=thresholds)
