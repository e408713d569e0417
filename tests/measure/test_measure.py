"""Measurements against closed forms and hand-made models."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from secateur.core import InputError
from secateur.execution import evaluating
from secateur.measure.cost import cost, macs, nbytes, nonzero, parameters
from secateur.measure.latency import latency
from secateur.measure.metrics import (
    Agreement,
    accuracy,
    agreement,
    distance_from,
    evaluate,
    log_likelihood,
    metric_named,
    more_is_better,
    perplexity,
)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_linear(batch: int, a: int, b: int, time_steps: int) -> None:
    assert macs(nn.Linear(a, b), torch.zeros(batch, a)) == batch * a * b
    assert macs(nn.Linear(a, b, bias=False), torch.zeros(batch, time_steps, a)) == batch * time_steps * a * b


@given(
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
    st.booleans(),
)
def test_convolution(
    dims: int, groups: int, a: int, b: int, kernel: int, stride: int, padding: int, transposed: bool
) -> None:
    """Every output position reads (inputs of its group) x taps; a transposed one writes from every input."""
    kind = {
        (1, False): nn.Conv1d,
        (2, False): nn.Conv2d,
        (3, False): nn.Conv3d,
        (1, True): nn.ConvTranspose1d,
        (2, True): nn.ConvTranspose2d,
        (3, True): nn.ConvTranspose3d,
    }[dims, transposed]
    padding = min(padding, kernel - 1)
    model = kind(groups * a, groups * b, kernel, stride=stride, padding=padding, groups=groups)
    x = torch.zeros(2, groups * a, *[5] * dims)
    positions = 5**dims if transposed else math.prod(model(x).shape[2:])
    assert macs(model, x) == 2 * positions * groups * a * b * kernel**dims


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_recurrent(kind: type, gates: int, layers: int, directions: int, dtype: torch.dtype) -> None:
    i, h, steps, batch = 5, 7, 4, 3
    model = kind(i, h, layers, bidirectional=directions == 2).to(dtype)
    first = i + h
    rest = directions * h + h
    want = steps * batch * gates * h * directions * (first + (layers - 1) * rest)
    assert macs(model, torch.zeros(steps, batch, i)) == want


def test_recurrent_variants() -> None:
    projected = nn.LSTM(5, 8, proj_size=3)
    assert macs(projected, torch.zeros(4, 2, 5)) == 4 * 2 * (32 * (5 + 3) + 3 * 8)
    packed = pack_padded_sequence(torch.zeros(5, 3, 8), [5, 3, 2])
    lstm = nn.LSTM(8, 16)
    with evaluating(lstm):
        assert macs(_Packed(lstm, packed), torch.zeros(1)) == (5 + 3 + 2) * 64 * (8 + 16)
    assert macs(nn.LSTMCell(8, 16), torch.zeros(3, 8)) == 3 * 64 * 24
    assert macs(nn.GRUCell(8, 16), torch.zeros(3, 8)) == 3 * 48 * 24


class _Packed(nn.Module):
    def __init__(self, lstm: nn.Module, packed: object) -> None:
        super().__init__()
        self.lstm, self.packed = lstm, packed

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.lstm(self.packed)[1][0]


class _Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        matrix_vector = self.weight @ x[0, 0]
        batched = torch.matmul(x, self.weight.t())
        contracted = torch.einsum("bti,oi->bto", x, self.weight)
        return (batched + contracted + matrix_vector).sum() + torch.dot(x[0, 0], x[0, 1])


def test_parameters_as_inputs_of_modules_do_not_disturb_the_count() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.ones(1, 4)), nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(self.token.reshape(1, 4).expand(2, 4)) + x

    assert macs(Token(), torch.ones(2, 3)) == 2 * 4 * 3


def test_products() -> None:
    x = torch.randn(3, 2, 5)
    assert macs(_Products(), x) == 4 * 5 + 2 * (3 * 2 * 4 * 5) + 5
    assert macs(nn.Bilinear(3, 4, 5), (torch.randn(7, 3), torch.randn(7, 4))) == 7 * 3 * 4 * 5


class _Attention(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, causal: bool = False) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, k, is_causal=causal)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
def test_grouped_products_of_experts() -> None:
    class Experts(nn.Module):
        def forward(self, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return torch._grouped_mm(rows, weights, torch.tensor([2, 5, 8], dtype=torch.int32))

    assert macs(Experts(), (torch.ones(8, 16), torch.ones(3, 16, 24))) == 8 * 16 * 24


def test_attention() -> None:
    batch, heads, queries, keys, width = 2, 3, 4, 5, 6
    q, k = torch.randn(batch, heads, queries, width), torch.randn(batch, heads, keys, width)
    want = 2 * batch * heads * queries * keys * width
    assert macs(_Attention(), (q, k)) == want
    assert macs(_Attention(), (q, q), {"causal": True}) == 2 * batch * heads * queries * queries * width


@pytest.mark.parametrize("frozen", [False, True])
def test_transformer_layer_with_and_without_its_fast_path(frozen: bool) -> None:
    d, heads, wide, batch, steps = 16, 4, 32, 3, 5
    model = nn.TransformerEncoderLayer(d, heads, wide, batch_first=True).eval().requires_grad_(not frozen)
    projections = batch * steps * (4 * d * d + 2 * d * wide)
    assert macs(model, torch.zeros(batch, steps, d)) == projections + 2 * batch * steps * steps * d
    assert torch.backends.mha.get_fastpath_enabled()


def test_weights_are_counted_once_and_zeros_seen() -> None:
    a = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(a, nn.ReLU(), a, nn.BatchNorm1d(4))
    with torch.no_grad():
        a.weight[0] = 0
    assert parameters(model) == 16 + 8
    assert nonzero(model) == 12 + 4
    assert nbytes(model) == 4 * (16 + 8 + 8) + 8
    assert nbytes(model.to(torch.bfloat16)) == 2 * (16 + 8 + 8) + 8
    assert cost(model, torch.zeros(2, 4)).macs == 2 * 2 * 16


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("cache", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.cache = torch.cat([self.cache, x.flatten()[:1]])
        return x


def test_a_measured_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(), _Counting())
    model.train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost(model, torch.randn(4, 3))
    latency({"a": model}, torch.randn(4, 3), batch_sizes=(2,), repeats=2)
    assert [m.training for m in model.modules()] == [True, False, True, True]
    after = model.state_dict()
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.is_grad_enabled()


@given(st.integers(2, 5), st.integers(1, 20), st.integers(0, 2**31))
def test_accuracy_and_likelihood_against_loops(classes: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    targets = torch.randint(classes, (rows,), generator=generator)
    batches = [(scores[:3], targets[:3]), (scores[3:], targets[3:])][: 1 + (rows > 3)]
    pairs = list(zip(scores.tolist(), targets.tolist(), strict=True))
    hits = sum(s.index(max(s)) == t for s, t in pairs)
    logs = [s[t] - math.log(sum(map(math.exp, s))) for s, t in pairs]
    assert accuracy(nn.Identity(), batches) == hits / rows
    assert math.isclose(log_likelihood(nn.Identity(), batches), sum(logs) / rows, rel_tol=1e-12)
    assert math.isclose(perplexity(nn.Identity(), batches), math.exp(-sum(logs) / rows), rel_tol=1e-12)


def test_class_axis_of_images_and_of_language() -> None:
    scores = torch.zeros(2, 3, 4, 5)
    scores[:, 1] = 1
    assert accuracy(nn.Identity(), [(scores, torch.ones(2, 4, 5, dtype=torch.long))]) == 1
    words = torch.zeros(2, 4, 7)
    words[..., 6] = 1
    targets = torch.full((2, 4), 6)
    targets[0, 0], targets[0, 1] = -100, 0
    assert accuracy(nn.Identity(), [(words, targets)]) == 6 / 7


class _Next(nn.Module):
    """Is sure that each token is followed by the next number."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.one_hot(tokens + 1, 9).double() * 50


def test_bare_tokens_predict_the_next() -> None:
    tokens = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    assert math.isclose(perplexity(_Next(), [tokens]), 1, rel_tol=1e-6)
    assert math.isclose(log_likelihood(_Next(), [tokens.flip(1)]), -50, rel_tol=1e-6)


def test_perplexity_of_uniform_scores_is_the_vocabulary() -> None:
    batches = [(torch.zeros(2, 5, 11), torch.ones(2, 5, dtype=torch.long))]
    assert math.isclose(perplexity(nn.Identity(), batches), 11, rel_tol=1e-6)


class _Structured(nn.Module):
    def forward(self, *, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"hidden": tokens, "logits": functional.one_hot(tokens, 4).float()}


def test_keyword_inputs_and_named_outputs() -> None:
    tokens = torch.tensor([[1, 2], [3, 0]])
    assert accuracy(_Structured(), [({"tokens": tokens}, tokens)]) == 1


def test_metrics_run_in_the_models_dtype() -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    batches = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))]
    assert 0 <= accuracy(model, batches) <= 1
    assert agreement(model, model, batches).largest == 0
    assert macs(model, torch.randn(4, 3)) == 24
    rows = latency({"a": model}, torch.randn(4, 3), batch_sizes=(2,), repeats=2)
    assert rows["a"][0].median > 0


def test_agreement_of_models_that_differ() -> None:
    a = nn.Linear(2, 3, bias=False)
    b = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[1.0, 0], [0, 2], [0, 0]]))
        b.weight.copy_(torch.tensor([[1.0, 0], [0, 0.5], [0, 0]]))
    x = torch.tensor([[1.0, 0], [1, 1]])
    assert agreement(a, b, [x]) == Agreement(0.5, 1.5, 0.75, 2)
    assert agreement(nn.Linear(2, 1), nn.Linear(2, 1), [x]).top1 is None


class _Detector(nn.Module):
    """Returns boxes, a thousand times as large as the scores, and scores."""

    def __init__(self, boxes: float = 1.0, scores: float = 1.0) -> None:
        super().__init__()
        self.factors = 1000 * boxes, scores

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.factors[0] * x, {"scores": self.factors[1] * x, "number": torch.arange(3)}


def test_every_floating_output_counts_relative_to_its_size() -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 1.0]])
    far = distance_from(_Detector(), [x])
    assert math.isclose(far(_Detector(boxes=0.5)), far(_Detector(scores=0.5)), rel_tol=1e-6)
    assert math.isclose(far(_Detector(scores=0.5)), 0.25 / 2, rel_tol=1e-6)
    compared = agreement(_Detector(), _Detector(scores=-1.0), [(x, None)])
    assert compared == Agreement(None, 4.0, 2.0, 2)
    with pytest.raises(InputError, match="shapes"):
        far(nn.Identity())


def test_agreement_is_a_metric() -> None:
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    x = torch.randn(50, 2)
    same = float((a(x).argmax(-1) == b(x).argmax(-1)).float().mean())
    assert math.isclose(evaluate(b, [x], "agreement", original=a), same, rel_tol=1e-6)
    assert evaluate(b, [{"input": x}], "agreement", b) == 1
    boxes = evaluate(_Detector(scores=0.5), [x], "agreement", original=_Detector())
    assert math.isclose(boxes, 1 - 0.125, rel_tol=1e-6)
    with pytest.raises(InputError, match="original="):
        evaluate(b, [x], "agreement")
    assert more_is_better("agreement") and not more_is_better("perplexity") and more_is_better(len)


def test_agreement_finds_the_classes_of_images() -> None:
    scores = torch.randn(2, 3, 4, 5)
    found = agreement(nn.Identity(), nn.Identity(), [scores])
    assert (found.top1, found.examples) == (1, 2 * 4 * 5)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "empty"),
        ([torch.zeros(2, 3)], "agreement"),
        ([(torch.zeros(2, 3), torch.zeros(2))], "integers"),
        ([(torch.zeros(2, 3), torch.zeros(3).long())], "belong together"),
        ([(torch.zeros(2, 1), torch.zeros(2).long())], "belong together"),
        ([(torch.zeros(2), torch.zeros(2).long())], "belong together"),
        ([(torch.full((2, 3), math.nan), torch.zeros(2).long())], "NaN"),
        ([(torch.zeros(2, 3), torch.full((2,), -100))], "nothing to measure"),
    ],
)
def test_invalid_batches(batches: list, words: str) -> None:
    with pytest.raises(InputError, match=words):
        accuracy(nn.Identity(), batches)


def test_invalid_metrics() -> None:
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        metric_named("acuracy")
    with pytest.raises(InputError, match="finite"):
        evaluate(nn.Identity(), [], lambda model, batches: math.nan)
    assert evaluate(nn.Identity(), [], lambda model, batches: 3) == 3.0


class _Slow(nn.Module):
    def __init__(self, seconds: float, log: list[float]) -> None:
        super().__init__()
        self.seconds, self.note = seconds, log.append  # lists of a model are as before after a measurement

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        self.note(self.seconds)
        return x


def test_latencytime_in_turns_and_orders() -> None:
    log: list[float] = []
    rows = latency(
        {"slow": _Slow(0.007, log), "fast": _Slow(0.006, log)},
        torch.zeros(3, 2),
        batch_sizes=(1, 4),
        repeats=8,
        warmup=2,
        threads=1,
    )
    assert [r.batch_size for r in rows["slow"]] == [1, 4]
    for slow, fast in zip(rows["slow"], rows["fast"], strict=True):
        assert slow.repeats == fast.repeats == 8
        assert slow.threads == 1
        assert slow.lower <= slow.median <= slow.upper
        assert fast.median < slow.median
    measured = log[8:24]
    assert all(sorted(measured[i : i + 2]) == [0.006, 0.007] for i in range(0, 16, 2))
    assert len({tuple(measured[i : i + 2]) for i in range(0, 16, 2)}) == 2


def test_latency_limit_is_stated() -> None:
    log: list[float] = []
    rows = latency({"a": _Slow(0.005, log)}, torch.zeros(1, 2), batch_sizes=(1,), repeats=100, limit=0.05)
    assert 5 <= rows["a"][0].repeats < 50


def test_latency_resizes_the_batch_axis_only() -> None:
    shapes: list[tuple[int, ...]] = []

    class Record(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            shapes.append((*x.shape, *mask.shape, *scale.shape))
            return x

    inputs, keywords = [torch.zeros(5, 2, 3)], {"mask": torch.zeros(1, 2), "scale": torch.zeros(3)}
    latency({"a": Record()}, inputs, keywords, batch_sizes=(1, 7), batch_axis=1, repeats=1, warmup=0)
    assert {shape[:5] for shape in shapes} == {(5, 1, 3, 1, 1), (5, 7, 3, 1, 7)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": {}}, "needs a model"),
        ({"repeats": 0}, "repeat"),
        ({"batch_sizes": (0,)}, "positive"),
        ({"batch_axis": 4}, "batch axis 4"),
    ],
)
def test_latency_bad_input(change: dict, words: str) -> None:
    arguments = {"models": {"a": nn.Identity()}, "inputs": torch.zeros(2, 2), **change}
    with pytest.raises(InputError, match=words):
        latency(**arguments)
