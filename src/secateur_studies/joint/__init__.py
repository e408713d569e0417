"""The four structures and all baselines, on the same networks, at the same sizes, with the same repairs."""

from secateur_studies.joint.study import FOLDERS, run

__all__ = ["FOLDERS", "run"]
