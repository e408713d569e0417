"""Modules become chains that compute the same, or are refused by name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core import InputError
from secateur.statistics.relu_chain import affine_relu_chain, flatten_images
from secateur.structures.relu_mip import build


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(pool: type[nn.Module], channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        pool(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        pool(2),
        nn.Conv2d(16, 120, 5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def small_vgg() -> nn.Sequential:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *block(3, 8),
        *block(8, 8),
        nn.MaxPool2d(2),
        *block(8, 16),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 10),
    )


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (3, 2), stride=(2, 1), padding="valid", groups=2)
        self.same = nn.Conv2d(6, 6, (4, 3), padding="same", dilation=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.linear = nn.Linear(6, 5)
        self.W = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.avg_pool2d(F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True), 3, 2, 1, ceil_mode=True)
        x = F.relu(self.norm(self.same(x))).mean((2, 3))
        x = F.linear(F.relu(self.linear(F.dropout(x, training=self.training))), self.W)
        return F.log_softmax(x, 1)


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


MODELS = {
    "FC-3": (mlp(784, 300, 100, 10), (1, 28, 28)),
    "FC-4": (mlp(784, 200, 100, 100, 10), (1, 28, 28)),
    "LeNet-5 average": (lenet(nn.AvgPool2d), (1, 32, 32)),
    "LeNet-5 max": (lenet(nn.MaxPool2d), (1, 32, 32)),
    "small VGG": (small_vgg(), (3, 16, 16)),
    "functional": (Functional(), (2, 11, 12)),
}


@pytest.mark.parametrize("name", MODELS)
def test_chain_computes_what_torch_computes(name):
    model, shape = MODELS[name]
    model = randomised(model)
    x = torch.randn(3, *shape)
    chain = affine_relu_chain(model, x)
    with torch.no_grad():
        truth = model(x).double().numpy()
    found = chain.logits(flatten_images(x))
    if name == "functional":  # log-softmax is left out: equal up to a constant an image
        found, truth = (v - v.mean(1, keepdims=True) for v in (found, truth))
    assert abs(found - truth).max() <= 1e-4 * max(1, abs(truth).max())


@pytest.mark.parametrize("kind", ["paper", "valid"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "functional"])
def test_at_full_scores_the_programs_logits_are_torchs(name, kind):
    model, shape = MODELS[name]
    model = randomised(model)
    x = torch.randn(1, *shape)
    chain = affine_relu_chain(model, x)
    with torch.no_grad():
        truth = model(x).double().numpy()
    program = build(chain, flatten_images(x), np.array([0]), epsilon=0.0, kind=kind)
    v = program.complete({layer: np.ones(size) for layer, size in chain.layers.items()})
    assert abs(program.logits_of(v) - truth).max() <= 1e-4 * max(1, abs(truth).max())
    assert program.violation(v) <= 1e-6


def test_units_are_feature_maps_named_after_their_weights():
    chain = affine_relu_chain(small_vgg().eval(), torch.zeros(2, 3, 16, 16))
    assert chain.layers == {"0.weight": 8, "3.weight": 8, "7.weight": 16, "14.weight": 16}


def test_masking_a_feature_map_equals_zeroing_its_weights():
    model = lenet(nn.MaxPool2d).eval().double()
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    chain = affine_relu_chain(model, x)
    keep = {name: np.ones(size, bool) for name, size in chain.layers.items()}
    keep["3.weight"][[2, 9]] = False
    with torch.no_grad():
        model[3].weight[[2, 9]] = 0
        model[3].bias[[2, 9]] = 0
        truth = model(x).numpy()
    np.testing.assert_allclose(chain.logits(flatten_images(x), keep), truth, atol=1e-9)


def test_a_layer_used_twice_shares_its_scores():
    inner = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), inner, nn.ReLU(), inner, nn.ReLU(), nn.Linear(4, 2))
    chain = affine_relu_chain(model.eval(), torch.zeros(2, 3))
    assert chain.layers == {"0.weight": 4, "2.weight": 4}


def test_unscored_layers_have_no_scores():
    chain = affine_relu_chain(mlp(4, 5, 6, 2), torch.zeros(2, 4), unscored=["3.weight"])
    assert chain.layers == {"1.weight": 5}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) + x)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        F.relu(self.a(x)).sum()
        return self.b(F.relu(self.a(x)))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), (4,), "gelu in 1"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2)),
            (4,),
            "layer_norm in 1",
        ),
        (Residual(), (4,), "add"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)), (4,), "model.eval"),
        (nn.Sequential(nn.Linear(4, 3)), (4,), "no scored ReLU"),
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), (1, 6), "conv1d"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), (5, 4), "must be 1"),
    ],
)
def test_what_no_chain_can_express_is_named(model, shape, message):
    with pytest.raises(InputError, match=message):
        affine_relu_chain(model, torch.zeros(2, *shape))


def test_unused_branches_do_not_matter():
    model = Branch()
    chain = affine_relu_chain(model, torch.zeros(2, 4))
    x = torch.randn(3, 4)
    np.testing.assert_allclose(chain.logits(flatten_images(x)), model(x).detach().numpy(), atol=1e-5)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        F.relu_(h)
        return self.b(h)


def test_a_write_into_what_is_used_later_is_not_dropped_as_unused():
    model, x = InPlace(), torch.randn(3, 4)
    chain = affine_relu_chain(model, x)
    np.testing.assert_allclose(chain.logits(flatten_images(x)), model(x).detach().numpy(), atol=1e-5)
    assert chain.layers == {"a.weight": 4}


def test_nan_among_the_weights_is_refused():
    model = mlp(4, 3, 2)
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        affine_relu_chain(model, torch.zeros(2, 4))


def test_matrices_over_the_cap_are_refused_with_the_estimate_before_they_are_built():
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 1024, 10)
    ).eval()
    with pytest.raises(InputError, match=r"3\.8\d?e\+07 non-zeros and need about 1\.4 GB"):
        affine_relu_chain(model, torch.zeros(1, 64, 32, 32), memory=1e9)


def test_the_model_is_left_as_it_was():
    model = mlp(4, 3, 2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    affine_relu_chain(model, torch.zeros(2, 4))
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
