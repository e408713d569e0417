"""Zoo networks: shapes, seeds, and training that repeats itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur import data, zoo
from secateur.core import InputError


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n not in ("vgg16", "resnet18")])
def test_factories_are_seeded_and_fit_their_example(name: str) -> None:
    factory = zoo.ZOO[name]
    before = torch.get_rng_state()
    model = factory(seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert same(model, factory(seed=3))
    assert not same(model, factory(seed=4))
    assert model.eval()(*factory.example_inputs).shape == (2, 10)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (zoo.mlp((64, 20, 20, 7)), (1, 8, 8)),
        (zoo.small_cnn(side=12, classes=7), (1, 12, 12)),
        (zoo.lenet5("avg", side=32, channels=3, classes=7), (3, 32, 32)),
        (zoo.vgg_small(side=8, channels=2, classes=7), (2, 8, 8)),
        (zoo.resnet20("projection", width=4, classes=7), (3, 16, 16)),
        (zoo.resnet18(width=4, classes=7), (3, 16, 16)),
        (zoo.gru(16, layers=2, side=8, classes=7), (1, 8, 8)),
        (zoo.transformer(16, heads=2, layers=1, side=8, classes=7), (1, 8, 8)),
    ],
)
def test_sizes_are_arguments(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    y = model.eval()(x)
    assert y.shape == (3, 7)
    assert torch.allclose(model(x[1:2]), y[1:2], atol=1e-5)


def test_published_parameter_counts() -> None:
    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert count(zoo.lenet5()) == 61_706
    assert count(zoo.resnet20("pad")) == 269_722
    assert count(zoo.resnet18()) == 11_173_962
    convolutions, biases, classifier = 14_714_688, 4224, 5130
    assert count(zoo.vgg16()) == convolutions - biases + 2 * biases + classifier


@pytest.mark.parametrize(
    "build",
    [
        lambda: zoo.mlp((5,)),
        lambda: zoo.mlp((5, 0, 2)),
        lambda: zoo.small_cnn(side=3),
        lambda: zoo.lenet5("mean"),
        lambda: zoo.lenet5(side=12),
        lambda: zoo.vgg16(side=16),
        lambda: zoo.resnet20("conv"),
        lambda: zoo.resnet18(width=0),
        lambda: zoo.transformer(10, heads=4),
    ],
)
def test_impossible_sizes_are_refused(build) -> None:
    with pytest.raises(InputError):
        build()


def test_training_repeats_itself_and_leaves_the_model() -> None:
    digits, model = data.digits(), zoo.mlp((64, 16, 10)).eval()
    untouched = zoo.mlp((64, 16, 10))
    torch.manual_seed(1)
    first = zoo.train(model, digits, epochs=2, limit=300, seed=5)
    torch.manual_seed(2)
    second = zoo.train(model, digits, epochs=2, limit=300, seed=5)
    other = zoo.train(model, digits, epochs=2, limit=300, seed=6)
    assert same(first.model, second.model)
    assert not same(first.model, other.model)
    assert first.losses == second.losses and len(first.losses) == 6
    assert same(model, untouched) and not model.training and not first.model.training


@pytest.mark.parametrize(
    ("model", "least"),
    [(zoo.mlp((64, 64, 10)), 0.94), (zoo.small_cnn(8, 32), 0.93), (zoo.lstm(32, side=8), 0.9)],
)
def test_networks_learn_digits(model: nn.Module, least: float) -> None:
    digits = data.digits()
    trained = zoo.train(model, digits, epochs=12, lr=1e-2, batch_size=32)
    x, y = digits.parts["test"]
    assert trained.accuracy == pytest.approx(float((trained.model(x).argmax(1) == y).float().mean()))
    assert trained.accuracy >= least
    assert trained.losses[-1] < trained.losses[0] / 3


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"limit": 0}, {"lr": -1.0}])
def test_train_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        zoo.train(zoo.mlp((64, 10)), data.digits(), **{"epochs": 1, **wrong})
