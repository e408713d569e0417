"""Architectures of other libraries at their smallest sizes, with random weights.

They need timm, torchvision, diffusers, transformers, vit_pytorch and einops.  The lists were fixed before the
first run; what does not build in the installed version is reported as such.
"""

from .diffusion import DIFFUSION
from .entry import Architecture
from .images import TIMM, TORCHVISION
from .transformers_models import TRANSFORMERS
from .vision_transformers import VIT_PYTORCH

LIBRARIES: dict[str, tuple[Architecture, ...]] = {
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "transformers": TRANSFORMERS,
    "diffusers": DIFFUSION,
    "vit_pytorch": VIT_PYTORCH,
}
ARCHITECTURES = {entry.name: entry for entries in LIBRARIES.values() for entry in entries}

__all__ = ["ARCHITECTURES", "LIBRARIES", "Architecture"]
