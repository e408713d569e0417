"""The four structures and all baselines, on the same networks, at the same sizes, with the same repairs."""

from secateur.studies.joint.study import run

__all__ = ["run"]
