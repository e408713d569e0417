"""Mask, shrink, hold, and the check between them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.apply.mask import keep_masked, mask
from secateur.apply.shrink import shrink
from secateur.core import ExactnessError, InputError, NothingToPrune, Plan, PlanError, Slot, Units
from secateur.formats.store import load
from secateur.modules.narrow_norm import NarrowNorm, norm_form
from secateur.modules.slim_attention import SlimAttention
from secateur.pruning import prune
from secateur.tracing.trace import trace


def mlp(dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def planned(model: nn.Module, inputs, share: float = 0.5, **more) -> Plan:
    graph = trace(model, inputs, **more)
    rng = np.random.default_rng(0)
    keep = {g.name: np.sort(rng.permutation(g.size)[: max(1, int(g.size * share))]) for g in graph.groups}
    return Plan(graph, "random", keep)


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_shrink_is_mask_and_both_are_the_closed_form() -> None:
    model = mlp()
    plan = planned(model, X)
    small, masked = shrink(model, plan), mask(model, plan)
    a, b = plan.keep["0"], plan.keep["2"]
    h = torch.sigmoid(X @ model[0].weight[a].T + model[0].bias[a])
    h = torch.tanh(h @ model[2].weight[b][:, a].T + model[2].bias[b])
    expected = h @ model[4].weight[:, b].T + model[4].bias
    torch.testing.assert_close(small(X), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked(X), expected, rtol=1e-12, atol=1e-12)
    assert (small[0].out_features, small[2].in_features, small[2].out_features) == (4, 4, 3)


class Buffered(nn.Module):
    """A buffer that is added to the features, and one of integers that multiplies them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("shift", torch.arange(1.0, 9.0))
        self.register_buffer("times", torch.arange(1, 9))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.first(x) + self.shift) * self.times
        return self.last(y) * y.sum(-1, keepdim=True)


def test_floating_buffers_are_masked_and_others_are_not() -> None:
    model = Buffered().double()
    plan = planned(model, X)
    gone = plan.removed("first")
    masked = mask(model, plan)
    assert len(gone) == 4 and (masked.shift[gone] == 0).all() and (masked.shift != 0).sum() == 4
    assert torch.equal(masked.times, model.times) and masked.times.dtype == torch.int64
    small = shrink(model, plan)
    torch.testing.assert_close(small(X), masked(X), rtol=1e-12, atol=1e-12)


class CachedBias(nn.Module):
    """Keeps a doubled bias between calls in evaluation mode; training mode drops it (LeViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.bias, self.cache = nn.Parameter(torch.randn(8)), None

    def train(self, mode: bool = True) -> nn.Module:
        self.cache = None if mode else self.cache
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None and not self.training and not torch.compiler.is_exporting():
            self.cache = (2 * self.bias).detach()
        bias = 2 * self.bias if self.cache is None else self.cache
        return self.last(torch.relu(self.first(x) + bias))


def test_values_that_the_model_cached_before_do_not_stay_in_the_smaller_one() -> None:
    model = CachedBias().double().eval()
    plan = planned(model, X)
    model(X)
    small = shrink(model, plan)
    torch.testing.assert_close(small(X), mask(model, plan)(X), rtol=1e-12, atol=1e-12)
    assert not small.training and model.cache is not None


class Stateful(nn.Module):
    """Adds features to a state whose size is written in the code, unless its cache is off (RWKV)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.last(y + torch.zeros(8, dtype=y.dtype) if self.config.use_cache else y)


def test_a_shrunk_model_that_runs_only_without_its_cache_is_refused() -> None:
    model = Stateful().double()
    with pytest.raises(ExactnessError, match=r"does not run as it is.*use_cache = False"):
        shrink(model, planned(model, X))
    model.config.use_cache = False
    assert shrink(model, planned(model, X)).last.in_features == 4


def test_the_users_model_is_untouched_and_nothing_is_shared() -> None:
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    for made in (shrink(model, planned(model, X)), mask(model, planned(model, X))):
        assert made.training
        with torch.no_grad():
            for p in made.parameters():
                p.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_flags_dtypes_and_ties_survive() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = (
                nn.Embedding(11, 6),
                nn.Linear(6, 6),
                nn.Linear(6, 11, bias=False),
            )
            self.head.weight = self.embed.weight
            self.mix.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.mix(self.embed(x))) + self.embed(x))

    model = Tied().to(torch.bfloat16)
    small = shrink(model, planned(model, torch.randint(11, (2, 5))))
    assert small.head.weight is small.embed.weight and small.embed.weight.shape == (11, 3)
    assert not small.mix.bias.requires_grad and small.mix.bias.dtype == torch.bfloat16
    assert small.embed.embedding_dim == 3 and small.head.in_features == 3


def test_removing_nothing_is_an_error_that_lists_what_is_frozen() -> None:
    graph = trace(mlp(), X)
    with pytest.raises(NothingToPrune, match="an output of the model"):
        shrink(mlp(), Plan(graph, "none"))


def test_a_plan_for_another_model_is_refused() -> None:
    plan = planned(mlp(), X)
    with pytest.raises(PlanError, match=r"shape \(9, 4\) and the plan was made for \(8, 4\)"):
        shrink(
            nn.Sequential(nn.Linear(4, 9), nn.Sigmoid(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)), plan
        )
    with pytest.raises(PlanError, match="does not have"):
        mask(nn.Linear(4, 3), plan)


def test_a_wrong_index_is_caught_and_its_operation_named() -> None:
    """`mask` and `shrink` share no index arithmetic: a group that points at the wrong columns shows."""
    model = mlp()
    plan = planned(model, X)
    group = plan.graph.group("2")
    wrong = tuple(
        Slot(s.tensor, s.axis, np.roll(s.index, 1, 0) if s.role == "in" else s.index, s.role)
        for s in group.slots
    )
    groups = tuple(dataclasses.replace(g, slots=wrong) if g.name == "2" else g for g in plan.graph.groups)
    broken = dataclasses.replace(plan, graph=dataclasses.replace(plan.graph, groups=groups))
    with pytest.raises(ExactnessError, match=r"the parameter '4.weight' gives other values.*unchanged"):
        shrink(model, broken)


def test_code_that_insists_on_a_size_fails_with_its_line() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            if len(y[0]) != 8:
                raise ValueError("eight, please")
            return self.b(y)

    model = Insists().double()
    plan = planned(model, X)
    with pytest.raises(ExactnessError, match=r"eight, please.*test_mask_and_shrink.py:\d+"):
        shrink(model, plan)
    assert shrink(model, plan, check=False).a.out_features == 4


def test_masks_of_single_weights_are_applied_by_both() -> None:
    model = mlp()
    graph = trace(model, X)
    stays = np.random.default_rng(0).random((6, 8)) < 0.3
    plan = Plan(graph, "weights", masks={"2.weight": stays})
    for made in (mask(model, plan), shrink(model, plan)):
        assert torch.equal(made[2].weight != 0, torch.from_numpy(stays))
    both = Plan(graph, "both", {"0": np.array([1, 4, 6])}, {"2.weight": stays})
    small = shrink(model, both)
    assert torch.equal(small[2].weight, (model[2].weight * torch.from_numpy(stays))[:, [1, 4, 6]])


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1), torch.optim.AdamW]
)
def test_hold_keeps_masked_weights_at_zero_through_training(make) -> None:
    model = mlp()
    stays = np.random.default_rng(0).random((6, 8)) < 0.3
    plan = Plan(trace(model, X), "weights", masks={"2.weight": stays})
    masked = mask(model, plan)
    optimizer = make(masked.parameters())
    handle = keep_masked(masked, plan, optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        masked(X).square().sum().backward()
        optimizer.step()
        assert (masked[2].weight[~torch.from_numpy(stays)] == 0).all()
    handle.remove()
    masked(X).square().sum().backward()
    optimizer.step()
    assert (masked[2].weight[~torch.from_numpy(stays)] != 0).any()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["plain", "causal", "padding", "both", "per head"])
def test_slim_attention_is_multihead_attention(batch_first: bool, kind: str) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(12, 3, batch_first=batch_first, dtype=torch.float64).eval()
    slim = SlimAttention(whole, 4)
    q, k = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    q, k = (q, k) if batch_first else (q.transpose(0, 1), k.transpose(0, 1))
    masks: dict[str, Tensor] = {}
    if kind in ("causal", "both"):
        masks["attn_mask"] = torch.ones(5, 7, dtype=torch.bool).triu(1)
    if kind in ("padding", "both"):
        masks["key_padding_mask"] = torch.arange(7).expand(2, 7) > torch.tensor([[4], [6]])
    if kind == "per head":
        masks["attn_mask"] = torch.randn(6, 5, 7, dtype=torch.float64)
    for average in (True, False):
        for found, expected in zip(
            slim(q, k, k, average_attn_weights=average, **masks),
            whole(q, k, k, average_attn_weights=average, **masks),
            strict=True,
        ):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    alone, nothing = slim(q, k, k, need_weights=False, **masks)
    torch.testing.assert_close(alone, whole(q, k, k, **masks)[0], rtol=1e-12, atol=1e-12)
    assert nothing is None


class Padded(nn.Module):
    """An encoder as torch makes it by default, which packs padded sequences where it does not train."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.embedding, self.last = nn.Embedding(50, 32), nn.Linear(32, 5)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [B, T], 0 where padded, to [B, 5]."""
        gone = ids == 0
        states = self.encoder(self.embedding(ids), src_key_padding_mask=gone)
        return self.last(states.masked_fill(gone[..., None], 0.0).sum(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_packs_padded_sequences_runs_as_it_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Padded().eval()
    ids = torch.randint(1, 50, (6, 9))
    ids[0, 6:], ids[3, 4:] = 0, 0
    result = prune(model, ids[:2], Units(0.5), method="magnitude")
    small, masked = result.model, mask(model, result.plan)
    result.save(tmp_path / "small")
    loaded = load(tmp_path / "small", Padded)
    with torch.no_grad():
        torch.testing.assert_close(small(ids), masked(ids), rtol=1e-5, atol=1e-5)
        assert torch.equal(loaded(ids), small(ids))
    assert model.encoder.use_nested_tensor
    torch.testing.assert_close(small(ids), masked(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        nn.LayerNorm,
        lambda n: nn.LayerNorm(n, bias=False),
        nn.RMSNorm,
        lambda n: nn.LayerNorm(n, elementwise_affine=False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_narrow_norm_computes_the_wide_one_on_zeros(make, dtype) -> None:
    torch.manual_seed(0)
    norm = make(10).to(dtype)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(torch.randn_like(p))
    form = norm_form(norm)
    kept = torch.tensor([0, 3, 4, 8])
    x = torch.zeros(6, 10, dtype=dtype)
    x[:, kept] = torch.randn(6, 4).to(dtype) + 1
    weight, bias = (None if t is None else t[kept] for t in (norm.weight, getattr(norm, "bias", None)))
    eps = norm.eps if norm.eps is not None else torch.finfo(dtype).eps
    narrow = NarrowNorm(weight, bias, eps, 10, form)
    rtol = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(narrow(x[:, kept]), norm(x)[:, kept], rtol=rtol, atol=rtol)


def test_normalisations_of_another_kind_are_not_mistaken() -> None:
    class OddLayerNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    class OtherEpsLayerNorm(nn.Module):
        normalized_shape = (6,)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x, (6,), eps=1e-5)

    assert norm_form(OddLayerNorm(6)) is None
    assert norm_form(OtherEpsLayerNorm()) is None
    assert norm_form(nn.LayerNorm((3, 4))) is None
    assert norm_form(nn.BatchNorm1d(6)) is None


def test_width_under_layernorm_shrinks_twice_and_stays_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Linear(16, 2)).double()
    once = shrink(model, planned(model, X))
    twice = shrink(once, planned(once, X))
    assert isinstance(twice[1], NarrowNorm) and twice[1].count == 16 and len(twice[1].weight) == 4
    kept = [int((model[0].weight == row).all(1).nonzero()) for row in twice[0].weight]
    full = torch.zeros(5, 16, dtype=torch.float64)
    full[:, kept] = model[0](X)[:, kept]
    expected = model[1](full)[:, kept] @ model[2].weight[:, kept].T + model[2].bias
    torch.testing.assert_close(twice(X), expected, rtol=1e-10, atol=1e-10)


def test_a_wrong_index_is_named_beside_ignored_layers_and_without_the_traced_model() -> None:
    """The masked model is labelled again, without `ignored_layers`: its groups need not be the plan's."""
    model = mlp()
    graph = trace(copy.deepcopy(model), X, ignored_layers=["0"])
    group = graph.group("2")
    wrong = tuple(
        dataclasses.replace(s, index=np.roll(s.index, 1, 0)) if s.role == "in" else s for s in group.slots
    )
    broken = dataclasses.replace(graph, groups=(dataclasses.replace(group, slots=wrong),))
    plan = Plan(broken, "", keep={"2": np.arange(group.size // 2)})
    with pytest.raises(ExactnessError, match=r"the parameter '4.weight' gives other values"):
        shrink(model, plan)


@pytest.mark.parametrize("apply", [mask, shrink])
def test_other_values_than_a_model_and_a_plan_are_refused(apply) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = Plan(trace(model, torch.ones(2, 4)), "by hand", {"0": np.arange(4)})
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module; got dict"):
        apply({}, plan)
    with pytest.raises(InputError, match="plan must be what plan"):
        apply(model, {})
