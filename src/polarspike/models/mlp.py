"""A multilayer perceptron on flattened images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from polarspike.errors import SpecError
from polarspike.models.initialization import initialize
from polarspike.models.registry import register, require_positive


class MLP(nn.Module):
    """``depth`` hidden layers of linear, batch norm and ReLU, then a linear head: (N, C, H, W) -> (N, classes)."""

    def __init__(self, inputs: int, num_classes: int, width: int, depth: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index in range(1, depth + 1):
            layers[f"linear{index}"] = nn.Linear(inputs if index == 1 else width, width)
            layers[f"norm{index}"] = nn.BatchNorm1d(width)
            layers[f"relu{index}"] = nn.ReLU()
        self.hidden = nn.Sequential(layers)
        self.head = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        return self.head(self.hidden(x))  # type: ignore[no-any-return]


@register(image_size=28)
def mlp(
    *, num_classes: int, in_channels: int, width: int = 256, depth: int = 2, image_size: int | tuple[int, int] = 28
) -> nn.Module:
    """Multilayer perceptron with batch norm, for one input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: units of each hidden layer.
        depth: number of hidden layers.
        image_size: side of the square input in pixels, or (H, W).
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise SpecError(f"model 'mlp': expected image_size to be one integer or (H, W), got {image_size!r}")
    height, wide = size
    require_positive("mlp", width=width, depth=depth, **{"image_size height": height, "image_size width": wide})
    return MLP(in_channels * height * wide, num_classes, width, depth)
