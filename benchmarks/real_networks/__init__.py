"""The networks of `benchmarks/real.py`."""

from real_networks.base import Network
from real_networks.fashion import FashionResNet, FashionViT
from real_networks.images import EfficientNetLite0
from real_networks.texts import MiniLM
from real_networks.words import G2P

__all__ = ["NETWORKS", "Network"]

NETWORKS: dict[str, Network] = {
    network.name: network for network in (EfficientNetLite0(), MiniLM(), FashionResNet(), G2P(), FashionViT())
}
