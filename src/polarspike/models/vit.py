"""A vision Transformer: patches, learned positions, pre-norm blocks, the mean over the tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polarspike.errors import SpecError
from polarspike.models.initialization import initialize
from polarspike.models.registry import register, require_positive


class Block(nn.Module):
    """Attention and a GELU perceptron, each behind a layer norm and with a residual sum: (N, L, D) to the same."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, L, D) to tokens."""
        y = self.norm1(x)
        # Unpacked and not indexed, because SpikingJelly's recipes take an index for one into a sequence of timesteps.
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patches as tokens, ``depth`` blocks, a linear head on the mean token.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, with the mean over tokens in place of a class token.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        size: tuple[int, int],
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        ratio: int,
    ) -> None:
        super().__init__()
        tokens = (size[0] // patch) * (size[1] // patch)
        self.patches = nn.Conv2d(in_channels, dim, patch, stride=patch, bias=False)  # (N, D, H/p, W/p)
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, dim))
        self.blocks = nn.Sequential(*[Block(dim, heads, ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (N, L, D)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))  # type: ignore[no-any-return]


@register(image_size=28)
def vit(
    *,
    num_classes: int,
    in_channels: int,
    width: int = 48,
    depth: int = 2,
    heads: int = 4,
    ratio: int = 2,
    patch: int = 4,
    image_size: int | tuple[int, int] = 28,
) -> nn.Module:
    """Vision Transformer, small unless told otherwise, for one input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: numbers of a token; ViT-Ti has 192, ViT-S 384.
        depth: blocks; 12 in both.
        heads: of the attention; 3 and 6 there.
        ratio: hidden numbers of the perceptron for each of a token; 4 there.
        patch: side of a patch in pixels.
        image_size: side of the square input in pixels, or (H, W); whole patches.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise SpecError(f"model 'vit': expected image_size to be one integer or (H, W), got {image_size!r}")
    require_positive("vit", width=width, depth=depth, heads=heads, ratio=ratio, patch=patch)
    require_positive("vit", **{"image_size height": size[0], "image_size width": size[1]})
    if width % heads or size[0] % patch or size[1] % patch:
        raise SpecError(
            f"model 'vit': expected width to be a multiple of heads and image_size one of patch, got width {width}, heads "
            f"{heads}, image_size {tuple(size)}, patch {patch}"
        )
    return ViT(in_channels, num_classes, (size[0], size[1]), patch, width, depth, heads, ratio)
