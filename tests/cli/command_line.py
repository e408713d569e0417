"""Run commands of the command line in this process, on a file of the user."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from secateur.cli.main import app

__all__ = ["NET", "prune", "run"]

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))

def ready():
    return make()

ready.example_inputs = (torch.zeros(2, 8),)

class Lost:
    pass

def broken():
    raise RuntimeError("no disk left")

def number():
    return 3

def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(64, 8, generator=generator) for _ in range(6)]
    return [(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()) for x in inputs]

def none():
    return []

def unlabelled():
    return [x for x, _ in batches()]

def held_out():
    return unlabelled()[3:]

def dicts():
    return [{"input": x, "labels": y} for x, y in batches()]

def loader():
    inputs = torch.cat(unlabelled())
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), batch_size=64)

def one_batch():
    return torch.zeros(4, 8)

def strings():
    return ["a", "b"]

def broken_batches():
    yield (torch.zeros(4, 8), torch.zeros(4).long())
    raise OSError("no such image")

def count_positive(model, batches):
    return float(sum((model(x) > 0).float().mean() for x in batches))

def wrong_metric(model, batches):
    return "high"

def failing_metric(model, batches):
    raise KeyError("score")

def squared(outputs, targets):
    return outputs.square().mean()

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x

branching = Branching

class Parts(Branching):
    def __init__(self):
        super().__init__()
        self.body = make()

    def forward(self, x):
        return self.body(super().forward(x))

def spoiled():
    model = make()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model

constant = 7
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def prune(*arguments: str) -> Result:
    return run("prune", "net.py:ready", *arguments)
