"""BatchNorm statistics taken anew: what they are, what stays, and that they bring back what pruning lost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from secateur import data, zoo
from secateur.apply.shrink import shrink
from secateur.core import InputError, Units
from secateur.measure.metrics import accuracy
from secateur.methods import Magnitude
from secateur.repair.batchnorm import update_bn
from secateur.statistics.collect import collect_statistics
from secateur.tracing.trace import trace


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
        nn.Flatten(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_are_those_of_the_batches_and_nothing_else_changes(dtype: torch.dtype) -> None:
    model = net().to(dtype).eval()
    model[3].train()
    before = copy.deepcopy(model)
    batches = [(torch.randn(16, 1, 8, 8, dtype=dtype), torch.zeros(16)) for _ in range(3)]
    found = update_bn(model, batches)
    seen = torch.stack([model[0](x).mean((0, 2, 3)) for x, _ in batches]).mean(0)
    spread = torch.stack([model[0](x).var((0, 2, 3)) for x, _ in batches]).mean(0)
    torch.testing.assert_close(found[1].running_mean, seen)
    torch.testing.assert_close(found[1].running_var, spread)
    assert [m.training for m in found] == [m.training for m in before] and found[1].momentum == 0.3
    was, now = before.state_dict(), found.state_dict()
    taken = ("running_mean", "running_var", "num_batches_tracked")
    changed = {name for name, value in now.items() if not torch.equal(value, was[name])}
    assert changed == {f"{at}.{name}" for at in (1, 5) for name in taken}
    assert all(torch.equal(value, was[name]) for name, value in model.state_dict().items())


def test_there_must_be_something_to_take_and_to_look_at() -> None:
    with pytest.raises(InputError, match="no BatchNorm layer"):
        update_bn(nn.Linear(2, 2), [torch.zeros(2, 2)])
    with pytest.raises(InputError, match="no batches"):
        update_bn(net(), [])


def test_a_pruned_network_gets_back_most_of_what_stale_statistics_cost() -> None:
    digits = data.digits()
    model = zoo.train(zoo.vgg_small(side=8), digits, 3, lr=5e-3, batch_size=32).model
    batches = digits.batches("calibration", 60)
    graph = trace(model, batches[0][0][:2])
    plan = Magnitude().plan(graph, collect_statistics(model, graph, batches, set()), Units(0.7))
    small = shrink(model, plan)
    plain, again = (accuracy(m, digits.batches("test")) for m in (small, update_bn(small, batches)))
    assert again > plain + 0.1
