"""Outputs that count: the axes of the others become units, and nothing compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampled import sampled
from torch import Tensor, nn

import secateur as sc
from secateur.core import InputError, Interface, Plan, PruningGraph
from secateur.formats.plan_json import plan_from_json, plan_to_json
from secateur.formats.store import load_plan
from secateur.measure.metrics import agreement
from secateur.statistics.loss import distillation_loss


class Features(nn.Module):
    """Returns scores, and the features that they are computed from, a thousand times too large."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 20), nn.Tanh())
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = 1e3 * self.body(x)
        return {
            "features": features,
            "inner": (features[:, :3].sum(1), features),
            "logits": self.head(features),
        }


class Scores(nn.Module):
    """Returns the scores of a model."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inside(x)["logits"]}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Features().double().eval()


def batches(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(64, 6, generator=generator, dtype=torch.float64) for _ in range(count)]


X = batches(1, seed=9)[0][:2]


def units(graph: PruningGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.groups}


def test_axes_of_outputs_that_do_not_count_are_units(model: nn.Module) -> None:
    assert units(sc.trace(model, X)) == {"body.0": 24}
    assert units(sc.trace(model, X, outputs=["logits", "features"])) == {"body.0": 24}
    graph = sc.trace(model, X, outputs="logits")
    assert units(graph) == {"body.0": 24, "body.2": 17}, "three features are read by position"
    assert "outputs that count: logits" in graph.summary()
    assert "outputs" not in sc.trace(model, X).summary().split("frozen")[0]


def test_one_tensor_returned_twice_stays_if_one_of_them_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            h = self.a(x).relu()
            return h, self.b(h), h

    x = torch.randn(2, 3)
    assert units(sc.trace(Twice(), x, outputs=1)) == {"a": 8}
    assert units(sc.trace(Twice(), x, outputs=[1, 2])) == {}


def test_bad_outputs_are_refused_with_what_there_is(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no output 'logit'; did you mean 'logits'"):
        sc.trace(model, X, outputs="logit")
    with pytest.raises(
        InputError, match=r"no output '1'.*Known: 'features', 'inner\.0', 'inner\.1', 'logits'"
    ):
        sc.prune(model, X, sc.Units(0.5), method="magnitude", outputs=1)
    with pytest.raises(InputError, match="outputs are names of fields"):
        sc.trace(model, X, outputs=())

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.relu(), x.argmax(1)

    with pytest.raises(InputError, match="1: there is no floating tensor among these outputs"):
        sc.trace(Counts(), X, outputs=1)


@pytest.mark.parametrize(
    "how",
    [
        {"repair": "refit"},
        {"repair": "fold+finetune", "budget": sc.Params(0.5)},
        {"repair": (sc.Finetune(steps=20, teacher=True),), "method": "taylor"},
        {"repair": "fold", "schedule": sc.Steps(2)},
    ],
    ids=["refit", "loss curves and finetune", "teacher", "steps"],
)
def test_a_pruning_is_that_of_the_model_with_these_outputs_alone(model: nn.Module, how: Any) -> None:
    """The same as for a wrapper that returns the scores only, in everything that is decided and repaired."""
    settings = {"budget": sc.Units(0.5), "data": batches(), "progress": False, **how}
    result = sc.prune(model, X, outputs="logits", ignored_layers=["body.2"], **settings)
    alone = sc.prune(Scores(model), X, ignored_layers=["inside.body.2"], **settings)
    for name, kept in alone.plan.keep.items():
        assert np.array_equal(kept, result.plan.keep[name.removeprefix("inside.")])
    x = batches(1, seed=5)[0]
    torch.testing.assert_close(result.model(x)["logits"], alone.model(x)["logits"], rtol=1e-9, atol=1e-9)
    assert set(result.model(x)) == {"features", "inner", "logits"}, "the model itself returns everything"
    assert not result.model._forward_hooks
    a, b = result.measure([x]).report.agreement, alone.measure([x]).report.agreement
    assert a is not None and b is not None
    assert a.relative == pytest.approx(b.relative, rel=1e-6) and a.top1 == b.top1
    both = [r.report.notes.get("measured loss") for r in (result, alone)]
    assert both[0] == (None if both[1] is None else pytest.approx(both[1], rel=1e-6))


def test_more_goes_and_what_counts_is_exact(model: nn.Module) -> None:
    result = sc.prune(model, X, sc.Units(0.5), method="magnitude", outputs="logits", repair=None)
    whole = sc.prune(model, X, sc.Units(0.5), method="magnitude", repair=None)
    assert result.report.after.cost.parameters < whole.report.after.cost.parameters
    x = batches(1)[0]
    masked, small = sc.mask(model, result.plan)(x), result.model(x)
    torch.testing.assert_close(small["logits"], masked["logits"], rtol=1e-12, atol=1e-12)
    assert small["features"].shape[1] < masked["features"].shape[1]


def test_a_tolerance_and_a_metric_look_at_what_counts(model: nn.Module) -> None:
    x = batches(1, seed=3)
    result = sc.prune(
        model,
        X,
        data=batches(),
        schedule=sc.Tolerance(0.9, x, "agreement", step=0.3),
        outputs="logits",
        progress=False,
    )
    expected = agreement(Scores(model), Scores(result.model), x).top1
    assert result.report.steps[-1]["metric"] == pytest.approx(expected)
    assert result.measure(x, "agreement").report.after.metric == pytest.approx(expected)


def test_finetune_follows_what_counts_with_a_plan(model: nn.Module) -> None:
    plan = sc.plan(sc.trace(model, X, outputs="logits"), "magnitude", sc.Units(0.5))
    small = sc.shrink(model, plan)
    with pytest.raises(InputError, match="its teacher"):
        sc.finetune(small, batches(), teacher=model, steps=1, progress=False)
    tuned, history = sc.finetune(small, batches(), teacher=model, plan=plan, steps=3, progress=False)
    x = batches()[0]
    with torch.no_grad():
        first = distillation_loss(Scores(small)(x), Scores(model)(x))
    assert history.losses[0] == pytest.approx(float(first))
    assert tuned(x)["features"] is not None


def test_plans_keep_what_counts(model: nn.Module, tmp_path: Path) -> None:
    result = sc.prune(model, X, sc.Units(0.5), method="magnitude", outputs=["logits", "inner.0"])
    assert result.plan.graph.interface == Interface(("logits", "inner.0"))
    assert plan_from_json(plan_to_json(result.plan)).graph.interface == result.plan.graph.interface
    result.save(tmp_path / "run")
    assert load_plan(tmp_path / "run").graph.interface == result.plan.graph.interface
    loaded = sc.load(tmp_path / "run", lambda: Features().double())
    x = batches(1)[0]
    assert torch.equal(loaded(x)["logits"], result.model(x)["logits"])
    assert Plan(sc.trace(model, X), "none").graph.interface == Interface()


def test_onnx_holds_all_outputs(model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = sc.prune(
        model.float(), X.float(), sc.Units(0.5), method="magnitude", outputs="logits", repair=None
    )
    result.to_onnx(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size > 0


def transformer(family: str) -> tuple[nn.Module, dict[str, Tensor], Any, float, float]:
    """Return a tiny model, its inputs, what counts, and the shares removed with and without that."""
    transformers = pytest.importorskip("transformers")
    tokens = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    tokens[:, -1] = 59
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if family == "clip":
        text = {
            **sizes,
            "vocab_size": 60,
            "hidden_size": 32,
            "max_position_embeddings": 16,
            "eos_token_id": 59,
        }
        image = {**sizes, "hidden_size": 24, "image_size": 16, "patch_size": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=20)
        inputs = {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 16, 16)}
        inputs["attention_mask"] = torch.ones_like(tokens)
        return transformers.CLIPModel(config).eval(), inputs, ["logits_per_image"], 0.4, 0.65
    if family == "t5":
        config = transformers.T5Config(
            vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        inputs = {"input_ids": tokens, "decoder_input_ids": tokens[:, :5]}
        return transformers.T5ForConditionalGeneration(config).eval(), inputs, "logits", 0.5, 0.7
    config = transformers.BertConfig(**sizes, vocab_size=60, hidden_size=32, max_position_embeddings=16)
    return transformers.BertModel(config).eval(), {"input_ids": tokens}, "pooler_output", 0.45, 0.65


@pytest.mark.parametrize("family", sampled(["clip", "t5", "bert"], "t5"))
def test_transformers_lose_more(family: str) -> None:
    torch.manual_seed(0)
    model, inputs, outputs, at_most, at_least = transformer(family)
    removed = []
    for counted in (None, outputs):
        result = sc.prune(model, inputs, sc.Units(0.5), method="magnitude", repair=None, outputs=counted)
        cost = result.report.before.cost.parameters, result.report.after.cost.parameters
        removed.append(1 - cost[1] / cost[0])
    assert removed[0] < at_most and removed[1] > at_least, removed
    assert result.measure().report.agreement is not None
