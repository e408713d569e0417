"""Information that representations hold, and rate-distortion functions.  All values are in nats.

A deterministic continuous map has infinite I(X; Y); what can be estimated is the information of a quantised
representation, or the information about a finite label.  The data-processing inequality needs the chain
X -> Y -> Y^: it holds for a function of Y (removing read-outs of units) and not for a change of the weights
that make Y from X, which gives another function of X (arXiv 2502.16525, Theorem III.6, assumes the chain).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, rel_entr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from secateur.core import InputError

__all__ = [
    "RatePoint",
    "decoded_information",
    "entropy",
    "pattern_information",
    "quantise",
    "rate_at",
    "rate_distortion",
    "unit_information",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def entropy(labels: ArrayLike) -> float:
    """Return the plug-in entropy of a finite variable, in nats.

    Example:
        >>> round(entropy([0, 0, 1, 1]) / math.log(2), 6)
        1.0
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
        InputError: If the shape, a value or the number of bins cannot be.
    """
    y = _activations(activations)
    if bins < 1:
        raise InputError(f"bins must be at least 1; got {bins}")
    low, high = y.min(0), y.max(0)
    width = np.where(high > low, high - low, 1.0)
    return np.minimum((bins * (y - low) / width).astype(np.int64), bins - 1)


def unit_information(activations: ArrayLike, labels: ArrayLike, bins: int = 16) -> FloatArray:
    """Return I(quantised unit; label) of each unit [units], corrected for the bias of Miller and Madow.

    The plug-in estimate exceeds the truth by about (cells - rows - columns + 1) / (2 samples), cells being
    the pairs that occur; that is subtracted, down to 0.

    Args:
        activations: [samples, units].
        labels: [samples].
        bins: Bins of each unit.

    Raises:
        InputError: If the lengths differ or a value is not finite.
    """
    cells, labels = quantise(activations, bins), _labels(labels, len(np.asarray(activations)))
    classes = len(np.unique(labels))
    return np.array([_corrected(cell, labels, classes) for cell in cells.T])


def _corrected(cell: IntArray, labels: NDArray[np.int64], classes: int) -> float:
    pairs = len(np.unique(np.stack([cell, labels]), axis=1).T)
    bias = (pairs - len(np.unique(cell)) - classes + 1) / (2 * len(labels))
    return max(0.0, float(mutual_info_score(labels, cell)) - bias)


def pattern_information(activations: ArrayLike, labels: ArrayLike, bins: int = 2) -> tuple[float, float]:
    """Return (I(X; T), I(label; T)) of the whole quantised representation T, by counting patterns.

    T is a function of the input X, so that I(X; T) is its entropy.  Both saturate at log(samples) where
    every pattern occurs once: compare them with `entropy(range(samples))` before believing either.

    Raises:
        InputError: If the lengths differ or a value is not finite.
    """
    cells = quantise(activations, bins)
    patterns = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    return entropy(patterns), float(mutual_info_score(_labels(labels, len(cells)), patterns))


def decoded_information(activations: ArrayLike, labels: ArrayLike, folds: int = 5) -> float:
    """Return a lower bound on I(label; Y): H(label) minus the held-out cross-entropy of a linear decoder.

    Args:
        activations: [samples, units].
        labels: [samples].
        folds: Folds of the cross-validation; each class needs as many samples.

    Raises:
        InputError: If the lengths differ, a value is not finite, or a class is too small.
    """
    y = _activations(activations)
    c = np.unique(_labels(labels, len(y)), return_inverse=True)[1].reshape(-1)
    if len(np.unique(c)) < 2 or np.bincount(c).min() < folds:
        raise InputError(f"a decoder needs 2 classes or more with at least {folds} samples each")
    decoder = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    p = cross_val_predict(decoder, y, c, cv=folds, method="predict_proba")
    return entropy(c) + float(np.log(np.maximum(p[np.arange(len(c)), c], 1e-12)).mean())


@dataclass(frozen=True, eq=False)
class RatePoint:
    """A point of the rate-distortion curve.

    Attributes:
        rate: I(Y; Y^) in nats.
        distortion: Expected distortion D.
        channel: p(y^ | y) that attains it [source, reproduction].
        gap: Proven upper bound on rate - R(distortion).
    """

    rate: float
    distortion: float
    channel: FloatArray
    gap: float


def rate_distortion(
    p: ArrayLike, distortion: ArrayLike, slope: float, tolerance: float = 1e-9, iterations: int = 100_000
) -> RatePoint:
    """Find the point of R(D) where the curve has slope -`slope`, by Blahut and Arimoto's iteration.

    R. Blahut, Computation of channel capacity and rate-distortion functions, IEEE Trans. IT 18, 1972, with
    its stopping rule: for c(j) = sum_i p_i e^{-s d_ij} / sum_k q_k e^{-s d_ik} the rate is within
    log max_j c(j) - sum_j q_j c(j) log c(j) of the curve.

    Args:
        p: Source distribution [source].
        distortion: d(y, y^) >= 0 [source, reproduction].
        slope: s > 0; large for little distortion.
        tolerance: Largest gap, in nats.
        iterations: Bound on the iterations.

    Raises:
        InputError: If p is no distribution, the shapes do not fit, or s is not positive.
        ArithmeticError: If the gap does not close within the iterations.

    Example:
        >>> point = rate_distortion([0.5, 0.5], 1 - np.eye(2), slope=2.0)
        >>> D = point.distortion
        >>> abs(point.rate - (math.log(2) + D * math.log(D) + (1 - D) * math.log(1 - D))) < 1e-8
        True
    """
    p, d = _source(p, distortion)
    if not slope > 0:
        raise InputError(f"slope must be positive; got {slope}")
    log_q = np.full(d.shape[1], -math.log(d.shape[1]))
    for _ in range(iterations):
        log_z = logsumexp(log_q - slope * d, axis=1)
        log_c = logsumexp(-slope * d - log_z[:, None], b=p[:, None], axis=0)
        gap = float(log_c.max() - (np.exp(log_q + log_c) * log_c).sum())
        if gap <= tolerance:
            channel = np.exp(log_q - slope * d - log_z[:, None])
            q = p @ channel
            rate = float((p[:, None] * rel_entr(channel, q)).sum())
            return RatePoint(rate, float((p[:, None] * channel * d).sum()), channel, gap)
        log_q = log_q + log_c
    raise ArithmeticError(f"gap {gap:.2e} after {iterations} iterations; allow more or a larger tolerance")


def rate_at(p: ArrayLike, distortion: ArrayLike, D: float, tolerance: float = 1e-6) -> RatePoint:
    """Find R(D) at a given distortion by bisection over the slope.

    Args:
        p: Source distribution [source].
        distortion: d(y, y^) >= 0 [source, reproduction].
        D: Distortion allowed.
        tolerance: Largest gap of the rate, and largest difference from D.  The iteration's steps grow about
            as its inverse; for sources of more than a few dozen letters 1e-3 takes a second.

    Raises:
        InputError: As `rate_distortion`, or if D is not above the least possible distortion.
    """
    p, d = _source(p, distortion)
    least, most = float(p @ d.min(1)), float((p @ d).min())
    if not least < D:
        raise InputError(f"D must be above {least:.4g}, the least distortion possible; got {D}")
    if most <= D:
        single = np.zeros_like(d)
        single[:, np.argmin(p @ d)] = 1
        return RatePoint(0.0, most, single, 0.0)
    low, high = -10.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        point = rate_distortion(p, d, math.exp(middle) / d.max(), tolerance)
        low, high = (middle, high) if point.distortion > D else (low, middle)
        if abs(point.distortion - D) <= tolerance:
            break
    return point


def _source(p: ArrayLike, distortion: ArrayLike) -> tuple[FloatArray, FloatArray]:
    p, d = np.asarray(p, np.float64), np.asarray(distortion, np.float64)
    if p.ndim != 1 or (p < 0).any() or not np.isclose(p.sum(), 1):
        raise InputError("p must be a distribution: non-negative with sum 1")
    if d.ndim != 2 or len(d) != len(p) or not np.isfinite(d).all() or (d < 0).any() or d.max() == 0:
        raise InputError(f"distortion must be [{len(p)}, reproductions], finite, non-negative and not all 0")
    return p, d


def _activations(activations: ArrayLike) -> FloatArray:
    y = np.asarray(activations, np.float64)
    if y.ndim != 2 or y.size == 0 or not np.isfinite(y).all():
        raise InputError(f"activations must be finite and [samples, units]; got shape {y.shape}")
    return y


def _labels(labels: ArrayLike, samples: int) -> NDArray[np.int64]:
    c = np.asarray(labels)
    if c.shape != (samples,):
        raise InputError(f"{samples} samples need as many labels; got shape {c.shape}")
    return c
