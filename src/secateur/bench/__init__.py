"""Compare methods: trials that run in processes or on a cluster, resume, and lose nothing."""

from secateur.bench.run import run_trials
from secateur.bench.trial import Trial, TrialResult
from secateur.bench.worker import EngineError

__all__ = ["EngineError", "Trial", "TrialResult", "run_trials"]
