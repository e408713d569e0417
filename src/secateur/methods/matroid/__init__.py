"""Matroid-guided pruning: windows of rows, exact merges of rows, bases of activations.

"Matroid-Guided Pruning: Removing 70% of Neurons for Free" (blog post) is ``ground="windows"``.  The other two
grounds keep its idea, that units which depend on others may go, where it holds for trained ReLU networks.
"""

from secateur.methods.matroid.audit import PermutationAudit, permutation_audit
from secateur.methods.matroid.method import Matroid
from secateur.methods.matroid.windows import partitions

__all__ = ["Matroid", "PermutationAudit", "partitions", "permutation_audit"]
