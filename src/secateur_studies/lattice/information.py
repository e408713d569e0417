"""Information of representations about a label, in nats.

A deterministic continuous map has infinite I(X; Y). What can be estimated is the information of a quantised
representation, or the information about a finite label. The data-processing inequality needs the chain
X -> Y -> Y^. It holds for a function of Y (removing read-outs of units), but not for a change of the weights
that make Y from X, which gives another function of X (arXiv:2502.16525, Theorem III.6, assumes the chain).

Rate and distortion of a pruned network: its decisions reproduce those of the whole one. The distortion is the
share that differs, the rate the information that both have in common, and R(D) the least rate at which any
reproduction differs so rarely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from secateur.core import InputError

__all__ = [
    "decoded_information",
    "entropy",
    "measure_distortion",
    "quantise",
    "rate_distortion",
    "unit_information",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def entropy(labels: ArrayLike) -> float:
    """Return the plug-in entropy of a finite variable, in nats.

    Example:
        >>> round(entropy([0, 0, 1, 1]), 4)
        0.6931
    """
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def quantise(activations: ArrayLike, bins: int) -> IntArray:
    """Cut each unit's range of values into equal bins, numbered from 0.

    Args:
        activations: [samples, units], finite.
        bins: Number of bins, at least 1.

    Raises:
        InputError: If the shape, a value or the number of bins is invalid.
    """
    y = _check_activations(activations)
    if bins < 1:
        raise InputError(f"bins must be at least 1; got {bins}")
    low, high = y.min(0), y.max(0)
    width = np.where(high > low, high - low, 1.0)
    return np.minimum((bins * (y - low) / width).astype(np.int64), bins - 1)


def unit_information(activations: ArrayLike, labels: ArrayLike, bins: int = 16) -> FloatArray:
    """Return I(quantised unit; label) of each unit [units], corrected for the bias of Miller and Madow.

    The plug-in estimate exceeds the truth by about (cells - rows - columns + 1) / (2 samples), where cells
    are the pairs that occur. This is subtracted, down to 0.

    Args:
        activations: [samples, units].
        labels: [samples].
        bins: Bins of each unit.

    Raises:
        InputError: If the lengths differ or a value is not finite.
    """
    cells, labels = quantise(activations, bins), _check_labels(labels, len(np.asarray(activations)))
    classes = len(np.unique(labels))
    return np.array([_corrected_information(cell, labels, classes) for cell in cells.T])


def _corrected_information(cell: IntArray, labels: NDArray[np.int64], classes: int) -> float:
    pairs = len(np.unique(np.stack([cell, labels]), axis=1).T)
    bias = (pairs - len(np.unique(cell)) - classes + 1) / (2 * len(labels))
    return max(0.0, float(mutual_info_score(labels, cell)) - bias)


def decoded_information(activations: ArrayLike, labels: ArrayLike, folds: int = 5) -> float:
    """Return a lower bound on I(label; Y): H(label) minus the held-out cross-entropy of a linear decoder.

    Args:
        activations: [samples, units].
        labels: [samples].
        folds: Folds of the cross-validation. Each class needs at least this many samples.

    Raises:
        InputError: If the lengths differ, a value is not finite, or a class is too small.
    """
    y = _check_activations(activations)
    c = np.unique(_check_labels(labels, len(y)), return_inverse=True)[1].reshape(-1)
    if len(np.unique(c)) < 2 or np.bincount(c).min() < folds:
        raise InputError(f"a decoder needs 2 classes or more with at least {folds} samples each")
    decoder = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    p = cross_val_predict(decoder, y, c, cv=folds, method="predict_proba")
    return entropy(c) + float(np.log(np.maximum(p[np.arange(len(c)), c], 1e-12)).mean())


def rate_distortion(p: ArrayLike, D: float) -> float:
    """Return R(D) of a finite source where any wrong letter counts 1, in nats (Erokhin 1958).

    The best reproduction uses the k most frequent letters. Given a reproduced letter, the source has that
    letter with probability 1 - D, each other used one with the same probability d, and each unused one with
    its own: D = (k - 1) d + P(unused). All used letters are more frequent than d, all unused ones less.

    Args:
        p: Distribution of the source [letters].
        D: Share of wrong letters allowed.

    Raises:
        InputError: If p is not a distribution or D is not between 0 and 1.

    Example:
        >>> round(rate_distortion([0.5, 0.5], 0.11), 3)  # log 2 less the entropy of 0.11
        0.347
    """
    source = np.sort(np.asarray(p, np.float64))[::-1]
    if source.ndim != 1 or not np.isclose(source.sum(), 1) or source.min() < 0 or not 0 <= D <= 1:
        raise InputError(f"R(D) needs probabilities that sum to 1 and D between 0 and 1; got {p!r} and {D}")
    if source[0] >= 1 - D:
        return 0.0
    # With fewer letters in use, the others' share leaves less of D for the used ones.
    for k in range(len(source), 1, -1):
        d = (D - source[k:].sum()) / (k - 1)
        if d <= source[k - 1]:
            break
    return float(-xlogy(source[:k], source[:k]).sum() + xlogy(1 - D, 1 - D) + (k - 1) * xlogy(d, d))


def measure_distortion(whole: ArrayLike, pruned: ArrayLike) -> dict[str, float]:
    """Return the distortion of decisions, their rate, and R(D) of the whole network's decisions, in nats.

    All three are those of the sample, for which no rate is below R(D).

    Args:
        whole: Decisions of the whole network [samples].
        pruned: Decisions of the pruned network [samples].

    Raises:
        InputError: If the lengths differ.

    Example:
        >>> measure_distortion([0, 0, 1, 1], [0, 0, 0, 0])
        {'distortion': 0.5, 'rate': 0.0, 'R(D)': 0.0}
    """
    one = np.asarray(whole)
    other = _check_labels(pruned, len(one))
    counts, D = np.unique(one, return_counts=True)[1], float((one != other).mean())
    rate = max(0.0, float(mutual_info_score(one, other)))
    return {"distortion": D, "rate": rate, "R(D)": rate_distortion(counts / counts.sum(), D)}


def _check_activations(activations: ArrayLike) -> FloatArray:
    y = np.asarray(activations, np.float64)
    if y.ndim != 2 or y.size == 0 or not np.isfinite(y).all():
        raise InputError(f"activations must be finite and [samples, units]; got shape {y.shape}")
    return y


def _check_labels(labels: ArrayLike, samples: int) -> NDArray[np.int64]:
    c = np.asarray(labels)
    if c.shape != (samples,):
        raise InputError(f"{samples} samples need as many labels; got shape {c.shape}")
    return c
