"""Tracing: what is found, what stays and why, and what is refused."""

from __future__ import annotations

import copy
import gc
import inspect
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core import CaptureError, InputError
from secateur.modules.narrow_norm import NormForm, norm_form
from secateur.tracing.trace import trace, traced_model


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


class Net(nn.Module):
    """A module around a function of two linear layers."""

    def __init__(self, body, width: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.heads, self.width, self.body = 4, width, body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def sizes(graph) -> dict[str, int]:
    return {g.name: g.size for g in graph.groups}


def reason(graph, tensor: str, axis: int) -> str:
    return next(f.reason for f in graph.frozen if (f.tensor, f.axis) == (tensor, axis))


def test_every_index_of_a_group_is_owned_once() -> None:
    graph = trace(mlp(), torch.randn(2, 4))
    for group in graph.groups:
        for slot in group.slots:
            assert sorted(slot.index.ravel()) == list(range(graph.shapes[slot.tensor][slot.axis]))
    assert sizes(graph) == {"0": 8, "2": 6}
    assert [(s.tensor, s.axis, s.role) for s in graph.group("0").slots] == [
        ("0.weight", 0, "out"),
        ("0.bias", 0, "out"),
        ("2.weight", 1, "in"),
    ]


def test_layers_are_listed_in_the_order_of_execution_with_their_uses() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2)), torch.randn(2, 1, 6, 6))
    assert [(x.name, x.kind, x.positions) for x in graph.layers] == [
        ("0", "conv", 16.0),
        ("2", "linear", 1.0),
    ]


def test_outputs_and_inputs_stay_and_say_so() -> None:
    graph = trace(mlp(), torch.randn(2, 4))
    assert "an output" in reason(graph, "4.weight", 0)
    assert "without units" in reason(graph, "0.weight", 1)


@pytest.mark.parametrize("ignored", [lambda m: m[0], lambda m: "0", lambda m: "0.weight"])
def test_ignored_layers_keep_their_units_but_may_read_fewer(ignored) -> None:
    model = mlp()
    graph = trace(model, torch.randn(2, 4), ignored_layers=[ignored(model)])
    assert sizes(graph) == {"2": 6}
    assert "ignored_layers" in reason(graph, "0.weight", 0)


def test_an_unknown_ignored_layer_is_an_error_with_near_matches() -> None:
    with pytest.raises(InputError, match="did you mean 'first'"):
        trace(Net(lambda m, x: m.last(m.first(x))), torch.randn(2, 5), ignored_layers=["frist"])


def test_a_foreign_module_is_not_ignored_silently() -> None:
    with pytest.raises(InputError, match="Linear"):
        trace(mlp(), torch.randn(2, 4), ignored_layers=[nn.Linear(2, 2)])


def test_a_size_written_in_the_code_stays_and_its_line_is_named() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        return m.last(m.first(x).view(-1, 12))

    graph = trace(Net(body), torch.randn(2, 5))
    assert not graph.groups
    frozen = next(f for f in graph.frozen if (f.tensor, f.axis) == ("first.weight", 0))
    assert "12 is written in the code" in frozen.reason
    line = inspect.getsourcelines(Net.forward)[1] + 1
    assert frozen.source.startswith(__file__) and int(frozen.source.rpartition(":")[2]) in range(
        line, line + 2
    )


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.last(m.first(x).view(x.size(0), -1)),
        lambda m, x: m.last(m.first(x).view(x.shape[0], m.width)),
        lambda m, x: m.last(m.first(x).flatten(1)),
        lambda m, x: (lambda y: m.last(y.reshape(y.shape[0], y.shape[1])))(m.first(x)),
        lambda m, x: m.last(m.first(x).view(-1, m.first.weight.shape[0])),
    ],
)
def test_sizes_that_follow_leave_the_units_free(body) -> None:
    assert sizes(trace(Net(body), torch.randn(2, 5))) == {"first": 12}


def test_heads_and_positions_are_told_apart_and_a_size_computed_across_them_freezes() -> None:
    def follows(m: Net, x: Tensor) -> Tensor:
        return m.last(m.first(x).view(x.shape[0], m.heads, -1).flatten(1))

    def does_not(m: Net, x: Tensor) -> Tensor:
        return m.last(m.first(x).view(x.shape[0], m.heads, 12 // m.heads).flatten(1))

    assert sorted(sizes(trace(Net(follows), torch.randn(2, 5))).values()) == [3, 4]
    graph = trace(Net(does_not), torch.randn(2, 5))
    assert "does not follow" in reason(graph, "first.weight", 0)


def test_an_unknown_operation_freezes_what_it_touches_and_is_named() -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        return m.last(torch.special.bessel_j0(m.first(x)))

    graph = trace(Net(body), torch.randn(2, 5))
    assert not graph.groups
    assert "not known" in reason(graph, "first.weight", 0) and "bessel_j0" in reason(graph, "first.weight", 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda m, x: m.last(m.first(x).softmax(-1)), "every entry of the axis"),
        (lambda m, x: m.last(m.first(x) - m.first(x).mean(-1, keepdim=True)), "statistic"),
        (lambda m, x: m.last(m.first(x).sigmoid().log()), "not finite at 0"),
        (lambda m, x: m.last(m.first(x).relu().log()), "not finite at 0"),
        (lambda m, x: m.last((m.first(x) - 1).relu().rsqrt()), "not finite at 0"),
        (lambda m, x: m.last((m.first(x).square() + -0.5).rsqrt()), "not finite at 0"),
        (lambda m, x: m.last((m.first(x) + 1).reciprocal()), "not finite at 0"),
        (lambda m, x: m.last(x[:, :1] / m.first(x).relu()), "0 where dead"),
        (lambda m, x: m.last(m.first(x)) * m.first(x).sigmoid().sum(-1, keepdim=True), "summed"),
    ],
)
def test_values_at_dead_units_are_followed(body, why: str) -> None:
    graph = trace(Net(body), torch.randn(2, 5))
    assert not graph.groups and why in reason(graph, "first.weight", 0)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.last((m.first(x).square() + 1e-6).rsqrt()),
        lambda m, x: m.last((m.first(x).abs() + m.first(x).exp() + 0.5) ** -0.5),
        lambda m, x: m.last((1 + m.first(x).relu()).log()),
        lambda m, x: m.last((m.first(x)[..., None].pow(2).mean(-1) + 1e-6).rsqrt()),
        lambda m, x: m.last((m.first(x)[..., None].pow(2).sum(-1) + 1e-6).rsqrt()),
        lambda m, x: m.last((m.first(x)[:, None].repeat(1, 2, 1).var(1) + 1e-6).rsqrt()),
    ],
)
def test_a_function_that_is_singular_at_zero_may_take_what_is_always_positive(body) -> None:
    assert sizes(trace(Net(body), torch.randn(2, 5))) == {"first": 12}


def test_a_unit_that_is_indexed_stays_and_the_others_are_free() -> None:
    graph = trace(Net(lambda m, x: m.last(m.first(x)) + m.first(x)[:, :1]), torch.randn(2, 5))
    assert graph.groups[0].slots[0].index.ravel().tolist() == list(range(1, 12))


@pytest.mark.parametrize("size", [lambda m: m.side**2, lambda m: 2**m.side])
def test_a_power_of_an_attribute_can_be_a_size(size) -> None:
    model = Net(lambda m, x: m.last(m.first(x).relu().view(x.shape[0], size(m), -1).flatten(1)))
    model.side = 2
    assert sizes(trace(model, torch.randn(3, 5))) == {"first": 3}


def test_the_inverse_root_of_a_length_enters_as_a_number() -> None:
    graph = trace(Net(lambda m, x: m.last(m.first(x)) * m.first(x).shape[-1] ** -0.5), torch.randn(2, 5))
    assert "as a number" in reason(graph, "first.weight", 0)


def test_a_length_that_enters_as_a_number_freezes() -> None:
    graph = trace(Net(lambda m, x: m.last(m.first(x)) / m.first(x).shape[-1]), torch.randn(2, 5))
    assert "as a number" in reason(graph, "first.weight", 0)


def test_parameters_that_nothing_reads_stay() -> None:
    model = Net(lambda m, x: m.last(m.first(x)))
    model.extra = nn.Linear(7, 7)
    graph = trace(model, torch.randn(2, 5))
    assert "not used" in reason(graph, "extra.weight", 0)


def test_tied_weights_are_one_tensor() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    graph = trace(model, torch.randn(2, 4))
    assert graph.aliases == {"2.weight": "0.weight"} and not graph.groups


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    trace(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(
        type(v) is not None and "TracedInt" not in type(v).__name__
        for m in model.modules()
        for v in vars(m).values()
    )


def test_keyword_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
            return self.c(F.relu(self.a(x) + self.b(y)))

    x, y = torch.randn(2, 4), torch.randn(2, 5)
    for given in (({"x": x, "y": y}, None), ((x,), {"y": y})):
        assert sizes(trace(Two(), given[0], example_kwargs=given[1])) == {"a": 6}


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (torch.randn(2, 5), CaptureError, "example_inputs"),
        ((), InputError, "no tensor"),
        (torch.randn(0, 4), InputError, "empty"),
        (torch.randn(2, 4, device="meta"), InputError, "meta"),
    ],
)
def test_bad_example_inputs(inputs, error, words: str) -> None:
    with pytest.raises(error, match=words):
        trace(mlp(), inputs)


def test_inputs_that_the_model_does_not_take_name_no_line_of_pythons_library() -> None:
    words = r"captured by torch.export: TypeError: missing a required argument: 'x'. Hint: check that model"
    with pytest.raises(CaptureError, match=words):
        trace(Net(lambda m, x: m.last(m.first(x))), (), example_kwargs={"y": torch.randn(2, 4)})


def test_not_a_module() -> None:
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        trace(lambda x: x, torch.randn(2, 4))  # type: ignore[arg-type]


def test_a_path_chosen_by_the_data_is_refused_with_its_line(capfd) -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        return m.last(m.first(x)) if x.sum() > 0 else m.last(-m.first(x))

    with pytest.raises(CaptureError, match=r"test_trace.py:\d+.*path depends on values"):
        trace(Net(body), torch.randn(2, 5))
    assert capfd.readouterr() == ("", "")


def test_norms_are_recognised_under_another_default_type() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for norm in (nn.LayerNorm(5), nn.LayerNorm(5, dtype=torch.float32)):
            assert norm_form(norm) == NormForm(centred=True, shift=0.0, axis=-1)
    finally:
        torch.set_default_dtype(torch.float32)


def test_layernorm_narrows_when_what_enters_is_zero_where_dead() -> None:
    norm = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    assert sizes(trace(norm, torch.randn(2, 4))) == {"0": 8}
    sigmoid = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.LayerNorm(8), nn.Linear(8, 2))
    assert not trace(sigmoid, torch.randn(2, 4)).groups


def test_summary_names_groups_and_frozen_axes() -> None:
    text = trace(mlp(), torch.randn(2, 4)).summary()
    assert (
        "2 groups, 14 units" in text
        and "0: 8 units (ffn) on 0.weight[0]" in text
        and "an output of the model" in text
    )


def test_units_are_the_same_on_a_batch_of_another_size() -> None:
    a, b = (trace(mlp(), torch.randn(n, 4)) for n in (2, 9))
    assert sizes(a) == sizes(b) and [x.positions for x in a.layers] == [x.positions for x in b.layers]


class Attention(nn.Module):
    """Two attention blocks with 4 heads of 3 and a linear layer behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.MultiheadAttention(12, 4), nn.MultiheadAttention(12, 4)
        self.between, self.out = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(self.first(x, x, x, need_weights=False)[0]).relu()
        return self.out(self.last(y, y, y, need_weights=False)[0])


@pytest.mark.parametrize(
    ("ignored", "gone"),
    [
        (["first (heads)"], {"first (heads)"}),
        (["first*"], {"first (heads)", "first.out_proj"}),
        (["* (heads)"], {"first (heads)", "last (heads)"}),
        (["between", "first (heads)"], {"between", "first (heads)"}),
        (["bet*.weig?t"], {"between"}),
    ],
)
def test_groups_and_patterns_can_be_ignored(ignored: list[str], gone: set[str]) -> None:
    model, x = Attention(), torch.randn(5, 2, 12)
    whole, graph = sizes(trace(model, x)), trace(model, x, ignored_layers=ignored)
    assert gone <= set(whole) and sizes(graph) == {n: k for n, k in whole.items() if n not in gone}


@pytest.mark.parametrize("name", ["firts", "x*", "first (head)", "out (heads)", "between #2"])
def test_an_ignored_name_or_pattern_that_matches_nothing_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match=r"no (layer|group)"):
        trace(Attention(), torch.randn(5, 2, 12), ignored_layers=[name])


def test_a_graph_does_not_keep_its_model_alive() -> None:
    model = mlp()
    graph, alive = trace(model, torch.randn(2, 4)), weakref.ref(model)
    assert traced_model(graph) is model and traced_model(copy.copy(graph)) is None
    del model
    gc.collect()
    assert alive() is None and traced_model(graph) is None
