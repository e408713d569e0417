"""Normalisations over an axis that has lost units, with the results of the masked model.

LayerNorm and RMSNorm take statistics over all n features.  In the masked model the removed ones are 0.  With
k features left, the sums run over k features and are still divided by n; the removed features differ from the
mean by -mean:

    mean = sum(x) / n,   variance = (sum((x - mean)^2) + (n - k) mean^2) / n.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "NarrowNorm",
    "NarrowResponseNorm",
    "NormForm",
    "ResponseForm",
    "build_narrow_norm",
    "norm_form",
]


@dataclass(frozen=True)
class NormForm:
    """Which normalisation a module computes.

    Attributes:
        centred: Whether the mean is subtracted (LayerNorm) or not (RMSNorm).
        shift: Added to the weight: 1 where a weight of 0 means a gain of 1.
        axis: The normalised axis: -1, or 1 for images with channels first.
        weight: Name of the gain.
        bias: Name of the shift of the mean.
    """

    centred: bool
    shift: float
    axis: int = -1
    weight: str = "weight"
    bias: str = "bias"


@dataclass(frozen=True)
class ResponseForm:
    """How a module computes a global response normalisation.

    Attributes:
        weight: Name of its gain.
        bias: Name of its shift.
        eps: Added to the mean.
        axis: The axis of the channels: -1, or 1 for images with channels first.
    """

    weight: str
    bias: str
    eps: float
    axis: int


NAMES = (("weight", "g", "gamma"), ("bias", "b", "beta"))  # of gains, of shifts
FORMS = [NormForm(c, s, a) for a in (-1, 1) for c, s in ((True, 0.0), (False, 0.0), (False, 1.0))]


class NarrowNorm(nn.Module):
    """LayerNorm or RMSNorm over the kept features, with the statistics of all features.

    Args:
        weight: Gain of the kept features [k] (or [1, k, 1, 1]), or None.
        bias: Shift of the kept features, or None.
        eps: Added to the variance; None for the resolution of the input's type, as in `nn.RMSNorm`.
        count: Number of features n before the removal.
        form: Which normalisation.

    Example:
        >>> norm = nn.LayerNorm(6)
        >>> x = torch.randn(2, 6)
        >>> x[:, 4:] = 0
        >>> narrow = NarrowNorm(norm.weight[:4], norm.bias[:4], norm.eps, 6, NormForm(True, 0.0))
        >>> bool(torch.allclose(narrow(x[:, :4]), norm(x)[:, :4], atol=1e-6))
        True
    """

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, eps: float | None, count: int, form: NormForm
    ) -> None:
        """Use the given tensors; they are not copied."""
        super().__init__()
        for name, tensor in ((form.weight, weight), (form.bias, bias)):
            if isinstance(tensor, nn.Parameter) or tensor is None:
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)
        self.eps, self.count, self.form = eps, count, form

    def forward(self, x: Tensor) -> Tensor:
        """Normalise an axis of length k, see `NormForm.axis`; half precision is computed in float32."""
        if self.form.axis != -1:
            return self._normalize(x.movedim(self.form.axis, -1)).movedim(-1, self.form.axis)
        return self._normalize(x)

    def _normalize(self, x: Tensor) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        h = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.form.centred:
            mean = h.sum(-1, keepdim=True) / self.count
            h = h - mean
            removed = (self.count - h.shape[-1]) * mean.square()
            variance = (h.square().sum(-1, keepdim=True) + removed) / self.count
        else:
            variance = h.square().sum(-1, keepdim=True) / self.count
        y = h * torch.rsqrt(variance + eps)
        weight, bias = getattr(self, self.form.weight), getattr(self, self.form.bias)
        if weight is not None:
            y = y * (_as_vector(weight) + self.form.shift)
        return (y if bias is None else y + _as_vector(bias)).to(x.dtype)

    def extra_repr(self) -> str:
        """Show sizes."""
        weight = getattr(self, self.form.weight)
        kept = "" if weight is None else f"{weight.numel()} of "
        return f"{kept}{self.count} features, eps={self.eps}"


def _as_vector(tensor: Tensor) -> Tensor:
    # A view of a vector would hide from a trace that its entries scale features.
    return tensor if tensor.ndim == 1 else tensor.flatten()


class NarrowResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2) over the kept channels, with the mean over all channels.

    x + weight * x * g / (mean(g) + eps) + bias, where g is the L2 norm of a channel over its positions.  In
    the masked model the removed channels have g = 0, so the sum over the kept ones, divided by the original
    number of channels, is the mean.

    Args:
        module: The normalisation whose gain and shift these are; they are used, not copied.
        form: Their names, the axis and the constant.
        count: Number of channels before the removal.
    """

    def __init__(self, module: nn.Module, form: ResponseForm, count: int) -> None:
        """Take the tensors under the names that they have."""
        super().__init__()
        for name in (form.weight, form.bias):
            self.register_parameter(name, module.get_parameter(name))
        self.form, self.count = form, count

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [batch, height, width, channels], or [batch, channels, height, width]."""
        axis, shape = self.form.axis, [1, 1, 1, 1]
        shape[axis] = -1
        weight, bias = (self.get_parameter(n).reshape(shape) for n in (self.form.weight, self.form.bias))
        response = x.norm(dim=(1, 2) if axis == -1 else (2, 3), keepdim=True)
        response = response / (response.sum(axis, keepdim=True) / self.count + self.form.eps)
        return x + weight * (x * response) + bias

    def extra_repr(self) -> str:
        """Show sizes."""
        return f"{self.get_parameter(self.form.weight).numel()} of {self.count} channels, eps={self.form.eps}"


def norm_form(module: nn.Module) -> NormForm | ResponseForm | None:
    """Return which normalisation a module computes over one axis, found by a trial; None if none.

    Example:
        >>> norm_form(nn.LayerNorm(5))
        NormForm(centred=True, shift=0.0, axis=-1, weight='weight', bias='bias')
    """
    if isinstance(module, (NarrowNorm, NarrowResponseNorm)):
        return module.form
    if any(name in type(module).__name__ for name in ("ResponseNorm", "GRN")):
        return _response_by_trial(module)
    named_so = any(name in type(module).__name__ for name in ("LayerNorm", "RMSNorm"))
    if not named_so or list(module.children()):
        return None
    weight, bias, eps = norm_tensors(module)
    known = {id(t) for t in (weight, bias) if t is not None}
    if any(id(t) not in known for t in (*module.parameters(), *module.buffers())):
        return None
    shape = getattr(module, "normalized_shape", None)
    width = weight.numel() if weight is not None else shape[0] if shape else 0
    flat = weight is None or width == max(weight.shape, default=0)  # all other axes have length 1
    if (shape is not None and len(shape) != 1) or not width or not flat:
        return None
    return _by_trial(module, eps, width)


def build_narrow_norm(original: nn.Module, small: nn.Module, count: int) -> nn.Module | None:
    """Return the normalisation that replaces one whose tensors have lost features.

    Args:
        original: The module before the removal.
        small: The same module with shorter tensors.
        count: Number of features before the removal.

    Returns:
        The module, or None if `original` has none of the known forms.
    """
    form = norm_form(original)
    count = original.count if isinstance(original, (NarrowNorm, NarrowResponseNorm)) else count
    if isinstance(form, ResponseForm):
        return NarrowResponseNorm(small, form, count).train(small.training)
    if form is None:
        return None
    weight, bias, eps = norm_tensors(small)
    return NarrowNorm(weight, bias, eps, count, form).train(small.training)


def norm_tensors(module: Any) -> tuple[Tensor | None, Tensor | None, float | None]:
    """Return weight, bias and eps of a normalisation."""
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    weight, bias = (getattr(module, name, None) for name in _names(module))
    return weight, bias, eps


def _names(module: nn.Module) -> tuple[str, str]:
    """Return the names of the gain and the shift of a normalisation."""
    weight, bias = (
        next((n for n in names if getattr(module, n, None) is not None), names[0]) for names in NAMES
    )
    return weight, bias


# Trials do not depend on torch's default type and device, which a user may have set.
FLOAT32: Any = {"dtype": torch.float32, "device": "cpu"}


def _float32_copy(module: nn.Module) -> nn.Module:
    """Copy a module to the CPU; one on the meta device gets any values."""
    copied = copy.deepcopy(module)
    on_meta = any(p.is_meta for p in copied.parameters())
    return (copied.to_empty(device="cpu") if on_meta else copied.cpu()).float()


def _by_trial(module: nn.Module, eps: float | None, width: int) -> NormForm | None:
    """Return the form that gives the results of a float32 copy with random gains."""
    generator = torch.Generator().manual_seed(0)
    trial: Any = _float32_copy(module)
    names = _names(module)
    with torch.no_grad():
        for tensor in trial.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, **FLOAT32))
        for shape, axis in (((3, 4, width), -1), ((3, width, 4, 5), 1)):
            x = torch.randn(shape, generator=generator, **FLOAT32) + 0.5
            x[0] *= 1e-3  # so small that another eps gives other results
            try:
                result = trial(x)
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue  # it takes other axes
            weight, bias, _ = norm_tensors(trial)
            for form in FORMS:
                if form.axis == axis and isinstance(result, Tensor) and result.shape == x.shape:
                    form = replace(form, weight=names[0], bias=names[1])
                    expected = NarrowNorm(weight, bias, eps, width, form)(x)
                    if torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
                        return form
    return None


def _response_by_trial(module: nn.Module) -> ResponseForm | None:
    """Return the form of a global response normalisation that gives the results of a float32 copy."""
    names = [name for name, _ in module.named_parameters()]
    if len(names) != 2 or any(True for _ in (*module.children(), *module.buffers())):
        return None
    generator = torch.Generator().manual_seed(0)
    trial = _float32_copy(module)
    eps = getattr(module, "eps", 1e-6)
    with torch.no_grad():
        for tensor in trial.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, **FLOAT32))
        width = trial.get_parameter(names[0]).numel()
        for axis, shape in ((-1, (2, 4, 5, width)), (1, (2, width, 4, 5))):
            x = torch.randn(shape, generator=generator, **FLOAT32)
            try:
                result = trial(x)
            except (RuntimeError, ValueError, TypeError, IndexError):
                continue  # it takes other axes
            for weight, bias in (names, names[::-1]):
                form = ResponseForm(weight, bias, eps, axis)
                expected = NarrowResponseNorm(trial, form, width)(x)
                same_shape = isinstance(result, Tensor) and result.shape == x.shape
                if same_shape and torch.allclose(result, expected, rtol=1e-4, atol=1e-6):
                    return form
    return None
