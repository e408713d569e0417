"""Update the BatchNorm statistics of a pruned model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core import InputError, IntArray
from secateur.execution import call, duplicate, one_at_a_time, read_batches

__all__ = ["NormInput", "has_statistics", "norm_layers", "update_bn"]

RATIOS = (1e-2, 1e2)  # between a renewed variance and the old one


def has_statistics(model: nn.Module) -> bool:
    """Return whether a BatchNorm layer of the model keeps running statistics."""
    return bool(norm_layers(model))


@one_at_a_time
def update_bn(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Return a copy whose BatchNorm layers have the means and variances of their inputs on these batches.

    Removed units change the inputs of later layers, so the statistics of training no longer fit.  Much of
    what a model without repair loses is due to that.  Nothing else changes; nothing is trained.

    Args:
        model: The model; it is not changed.  The copy is in the same mode.
        batches: Batches; targets are not needed.  Every batch counts equally, so give batches of one size, of
            32 examples or more.

    Raises:
        InputError: If no BatchNorm layer keeps running statistics, or there are no batches.

    Example:
        >>> norm = nn.Sequential(nn.BatchNorm1d(2)).eval()
        >>> updated = update_bn(norm, [torch.tensor([[1.0, 0.0], [3.0, 0.0]])])
        >>> updated[0].running_mean.tolist(), norm[0].running_mean.tolist()
        ([2.0, 0.0], [0.0, 0.0])
    """
    copied = duplicate(model)
    norms = [m for m in copied.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise InputError(
            f"{type(model).__name__} has no BatchNorm layer with running statistics: nothing to update"
        )
    momenta = [norm.momentum for norm in norms]
    copied.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    with torch.no_grad():
        for _, args, kwargs, _ in read_batches(batches, copied):
            call(copied, args, kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, original in zip(copied.modules(), model.modules(), strict=True):
        module.training = original.training
    return copied


def norm_layers(model: nn.Module) -> dict[str, str]:
    """Return the name of the running mean of each BatchNorm layer -> that of its running variance."""
    norms = (
        name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None
    )
    prefixes = [f"{name}." if name else "" for name in norms]
    return {f"{prefix}running_mean": f"{prefix}running_var" for prefix in prefixes}


class NormInput:
    """What reaches a BatchNorm layer in the original and in the pruned network, channel by channel.

    Args:
        kept: The channels that are left.
        spread: Whether the variance may change; it takes most of the time.
    """

    def __init__(self, kept: IntArray, spread: bool) -> None:
        """Start without rows."""
        self._kept, self._spread = torch.from_numpy(kept), spread
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, z: Tensor) -> None:
        """Add the inputs [batch, channels, ...] of one batch."""
        parts = []
        for given in (x, z):
            wide = given.to(torch.promote_types(given.dtype, torch.float32))
            axes = [axis for axis in range(given.ndim) if axis != 1]
            if self._spread:
                variance, mean = (v.double() for v in torch.var_mean(wide, axes, correction=0))
            else:
                mean = wide.mean(axes).double()
                variance = torch.zeros_like(mean)
            count = mean.new_tensor(given.numel() / given.shape[1])
            parts += [count * mean, count * (variance + mean.square()), count]
        self._sums = [a + b for a, b in zip(self._sums, parts, strict=True)] if self._sums else parts

    def finite(self) -> bool:
        """Return whether all sums are finite."""
        return all(bool(part.isfinite().all()) for part in self._sums)

    def renew(self, mean: Tensor, variance: Tensor, original: tuple[Tensor, Tensor]) -> None:
        """Change running statistics, in place, so that the normalised values are distributed as before.

        With m, v the mean and variance of the input in the original, m', v' those in the pruned network, and
        mu, s^2 the running statistics of the original, mu' and s'^2 satisfy (m - mu) / s = (m' - mu') / s'
        and v / s^2 = v' / s'^2; without `spread`, s' = s.  Both come from the same data, so a small sample
        does little harm.

        Args:
            mean: The running mean of the pruned layer, where the new one goes.
            variance: The running variance of the pruned layer, where the new one goes.
            original: Running mean and variance of the original layer, all channels.
        """
        x, x2, n, z, z2, k = self._sums
        m, m_now = x / n, z / k
        v, v_now = (x2 / n - m.square()).clamp_min(0), (z2 / k - m_now.square()).clamp_min(0)
        kept = self._kept.to(m.device)
        m, v = m[kept], v[kept]
        old_mean, old_variance = (values.double()[kept] for values in original)
        ratio = torch.ones_like(v)
        if self._spread:
            known = v > 1e-6 * old_variance
            ratio = torch.where(known, v_now / v.clamp_min(1e-300), ratio).clamp(*RATIOS)
        mean.copy_(m_now - (m - old_mean) * ratio.sqrt())
        variance.copy_(old_variance * ratio)
