"""What experts do against sums over tokens and experts, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.core import InputError
from secateur.measure.expert_use import ExpertUse, measure_expert_use

WIDTH, COUNT, CHOSEN = 6, 5, 2


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Listed(nn.Module):
    """Experts in a list, each called with the tokens that are routed to it, and one that all tokens share."""

    def __init__(self, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, COUNT, bias=False)
        self.experts, self.shared = nn.ModuleList([Expert() for _ in range(COUNT)]), Expert()
        self.top_k, self.tail = CHOSEN, tail or nn.Identity()

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and the numbers of the chosen experts."""
        weights, index = self.gate(x).softmax(-1).topk(self.top_k, -1)
        return weights / weights.sum(-1, keepdim=True), index

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape, x = x.shape, x.reshape(-1, WIDTH)
        weights, index = self.route(x)
        total = self.shared(x)
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(index == number)
            y = expert(x[token])
            y *= weights[token, choice, None]
            total = total.index_add(0, token, y)
        return self.tail(total).reshape(shape), weights


class Dense(Listed):
    """All experts are called with all tokens; the weights of those not chosen are zero."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.route(x)
        all_weights = torch.zeros(*x.shape[:-1], COUNT, dtype=x.dtype).scatter(-1, index, weights)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return self.tail(x + (outputs * all_weights[..., None, :]).sum(-1)), weights


class First(nn.Module):
    """The first output of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def use_of(rows: list[tuple[int, float, Tensor]], count: int) -> ExpertUse:
    """Add up tokens and gate times norm, one pair of token and expert after the other."""
    tokens, total = torch.zeros(2, count, dtype=torch.float64)
    for number, gate, output in rows:
        tokens[number] += 1
        total[number] += gate * float(output.square().sum()) ** 0.5
    return ExpertUse(tokens, total)


def assert_same(found: ExpertUse, rows: list[tuple[int, float, Tensor]], **tolerance: float) -> None:
    """Tokens, sums and means are those of the pairs."""
    expected = use_of(rows, len(found.tokens))
    assert torch.equal(found.tokens, expected.tokens) and found.total.dtype == torch.float64
    assert torch.allclose(found.total, expected.total, **tolerance)
    routed = expected.tokens > 0
    assert torch.allclose(found.mean[routed], (expected.total / expected.tokens)[routed], **tolerance)
    assert routed.any() and not found.mean[~routed].any()


def batches(count: int = 2) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(7 + i, 3, WIDTH, generator=draw, dtype=torch.float64) for i in range(count)]


@pytest.mark.parametrize("kind", [Listed, Dense])
def test_experts_in_a_list(kind: type[Listed]) -> None:
    torch.manual_seed(0)
    layer = kind().double().train()
    with torch.no_grad():
        layer.gate.weight[4] = -layer.gate.weight[:4].sum(0)
    model, rows = nn.Sequential(First(layer)), []
    for x in torch.cat([batch.reshape(-1, WIDTH) for batch in batches()]):
        weights, index = layer.route(x)
        rows += [
            (e, float(g.detach()), layer.experts[e](x).detach())
            for g, e in zip(weights, index.tolist(), strict=True)
        ]
    state = {name: x.clone() for name, x in model.state_dict().items()}
    found = measure_expert_use(model, batches())["0.layer"]
    assert_same(found, rows, rtol=1e-12, atol=0)
    assert (found.tokens > 0).all()
    assert model.training and all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_an_expert_that_gets_no_token_has_none() -> None:
    torch.manual_seed(0)
    layer = Listed().double()
    layer.gate = nn.Linear(WIDTH, COUNT).double()
    with torch.no_grad():
        layer.gate.bias[3] = -100
    found = measure_expert_use(nn.Sequential(First(layer)), batches())["0.layer"]
    for values in (found.tokens, found.total, found.mean):
        assert values[3] == 0 and (values[[0, 1, 2, 4]] > 0).all()


def swiglu(experts: Any, number: int, x: Tensor) -> Tensor:
    gate, up = (experts.gate_up_proj[number].double() @ x).chunk(2)
    return experts.down_proj[number].double() @ (nn.functional.silu(gate) * up)


def clamped(experts: Any, number: int, x: Tensor) -> Tensor:
    """Compute an expert of GPT-OSS."""
    both = x @ experts.gate_up_proj[number].double() + experts.gate_up_proj_bias[number].double()
    gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
    h = (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    return h @ experts.down_proj[number].double() + experts.down_proj_bias[number].double()


SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
EXPERTS = {"num_local_experts": COUNT, "num_experts": COUNT, "num_experts_per_tok": 2}
LATENT = {
    "num_local_experts": 6,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 8,
    "kv_lora_rank": 8,
}
LATENT |= {"q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
LATENT |= {"first_k_dense_replace": 1, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("family", "options", "compute"),
    [
        ("Mixtral", {}, swiglu),
        ("Mixtral", {"experts_implementation": "eager"}, swiglu),
        ("Mixtral", {"experts_implementation": "batched_mm"}, swiglu),
        ("Qwen2Moe", {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}, swiglu),
        ("GptOss", {"head_dim": 8}, clamped),
        ("DeepseekV3", LATENT, swiglu),
    ],
)
def test_experts_stacked_in_tensors(family: str, options: dict[str, Any], compute: Any) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **EXPERTS, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:  # then the largest scores are not what the router chooses
                buffer.normal_(0, 2)
    ids = [torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = measure_expert_use(model, [{"input_ids": x} for x in ids])
    rows: dict[str, list[Any]] = {name: [] for name in found}

    def see(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            flat = args[0].reshape(-1, SIZES["hidden_size"])
            router = module.router if hasattr(module, "router") else module.gate
            _, weights, index = router(flat)
            for x, gates, numbers in zip(flat.double(), weights, index.tolist(), strict=True):
                pairs = zip(gates.tolist(), numbers, strict=True)
                rows[name] += [(e, g, compute(module.experts, e, x)) for g, e in pairs]

        return hook

    for name in found:
        model.get_submodule(name).register_forward_pre_hook(see(name))
    with torch.no_grad():
        for x in ids:
            model(x)
    assert len(found) == (1 if family == "DeepseekV3" else 2)
    for name, use in found.items():
        assert_same(use, rows[name], rtol=2e-5, atol=1e-9)


class Stacked(nn.Module):
    """Experts in a tensor, that only get the hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(COUNT, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,eoi->...eo", x, self.weight)


class Scaled(Stacked):
    """The weights scale what experts read, as in Llama 4."""

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        scaled = x[..., None, :] * weights[..., None]
        return torch.einsum("...ki,...koi->...o", scaled.relu() ** 2, self.weight[index])


class Mixing(Listed):
    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts  # type: ignore[assignment]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.route(x)
        if isinstance(self.experts, Scaled):
            return x + self.experts(x, index, weights), weights
        index = index[..., None].expand(*index.shape, WIDTH)
        return x + (weights[..., None] * self.experts(x).gather(-2, index)).sum(-2), weights


class Detached(Listed):
    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Mixing(Stacked()), "not called with hidden states, the chosen experts and their weights"),
        (lambda: Mixing(Scaled()), "not the sum of what experts return"),
        (lambda: Listed(nn.LayerNorm(WIDTH)), "not the sum of what experts return"),
        (lambda: Listed(nn.Linear(WIDTH, WIDTH)), "not the sum of what experts return"),
        (Detached, "no derivative"),
    ],
)
def test_what_cannot_be_observed_is_an_error_that_names_the_mixture(make: Any, problem: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(First(make())).double()
    with pytest.raises(InputError, match=rf"'0.layer' cannot be observed: .*{problem}.*\[0, 1\]"):
        measure_expert_use(model, batches())
    assert not any(m._forward_hooks for m in model.modules())


def test_experts_that_the_model_does_not_call_are_an_error() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = Listed(), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x)

    with pytest.raises(InputError, match="not called on their own"):
        measure_expert_use(Unused().double(), batches())
