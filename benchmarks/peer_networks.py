"""The networks on which converters were compared (peers): two small CNNs and a vision Transformer, as a user writes them.

All take normalized grey images (N, 1, 28, 28) of Fashion-MNIST and give logits (N, 10). The widths of the CNNs, 16, 32 and
64, reproduce the operations measured there: 61.44 million multiply-accumulates for 32 images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[1] / "runs" / "peers"


class PoolingCNN(nn.Module):
    """[Conv3x3, batch norm, ReLU, pool 2] twice, Conv3x3, batch norm, ReLU, average pool 7, Linear.

    Args:
        pool: the class of the pooling layers after the first two convolutions.
        width: channels of the first convolution; the others have twice and four times as many.
    """

    def __init__(self, pool: Callable[[int], nn.Module], width: int = 16) -> None:
        super().__init__()
        widths = (1, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for index in range(3):
            layers.append(nn.Conv2d(widths[index], widths[index + 1], 3, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(widths[index + 1]))
            layers.append(nn.ReLU(inplace=True))
            layers.append(pool(2) if index < 2 else nn.AvgPool2d(7))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


class Block(nn.Module):
    """One pre-norm Transformer block: attention and a GELU perceptron, each with a residual sum; (N, L, D) to the same."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.mha = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, L, D) to tokens."""
        y = self.norm1(x)
        y, _ = self.mha(y, y, y)
        x = x + y
        tokens: Tensor = x + self.mlp(self.norm2(x))
        return tokens


class SmallViT(nn.Module):
    """A vision Transformer: 49 patches of 4x4 pixels, learned positions, two blocks of 48 numbers, mean over the tokens."""

    def __init__(
        self, dim: int = 48, depth: int = 2, heads: int = 4, ratio: int = 2, patch: int = 4, size: int = 28
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, dim))
        self.blocks = nn.Sequential(*[Block(dim, heads, ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (N, 49, D)
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "max-pool": lambda: PoolingCNN(nn.MaxPool2d),
    "avg-pool": lambda: PoolingCNN(nn.AvgPool2d),
    "vit": SmallViT,
}
#: How the networks are trained: as where they were compared (one epoch), and properly.
TRAININGS = ("brief", "proper")


def title(network: str, training: str, seed: int) -> str:
    """The name of one trained network in result files."""
    return f"{network}-{training}{f'-seed{seed}' if seed else ''}"


def weights_file(network: str, training: str, seed: int = 0) -> Path:
    """Where the weights of one trained network are."""
    return WEIGHTS / f"{title(network, training, seed)}.safetensors"


def load(network: str, training: str, seed: int = 0) -> nn.Module:
    """A trained network in evaluation mode; :mod:`train_peers` makes the file."""
    path = weights_file(network, training, seed)
    if not path.is_file():
        raise SystemExit(
            f"expected the weights {path}, found none; run first: python benchmarks/train_peers.py --networks {network} "
            f"--trainings {training} --seeds {seed}"
        )
    model = NETWORKS[network]()
    model.load_state_dict(load_file(path))
    return model.eval()
