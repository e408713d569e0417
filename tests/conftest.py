"""Settings that every test shares: reproducible examples, one thread, a fixed start of every generator."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "secateur",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("secateur")
torch.set_num_threads(1)
# Doctests are looked for in every module; several folders have a conftest of their own.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Start the global generators alike, so that no test depends on the one before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
