"""The joint study: the four structures and all baselines on the same networks, sizes and repairs."""

from secateur_studies.joint.study import STUDY

__all__ = ["STUDY"]
