"""A plain network for frames of event counts: convolutions with batch norm and ReLU, and max pooling in between."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from polarspike.models.initialization import initialize
from polarspike.models.layers import conv_norm_relu
from polarspike.models.registry import register, require_positive


class EventCNN(nn.Module):
    """``stages`` of two 3x3 convolutions, each stage with twice the channels and half the pixels, then the mean over pixels.

    Everything between two spikes is a convolution, a batch norm or a max pooling: exact over time without a product.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, stages: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = in_channels
        for number in range(stages):
            outputs = width * 2**number
            layers[f"stage{number + 1}"] = nn.Sequential(
                conv_norm_relu(channels, outputs),
                conv_norm_relu(outputs, outputs),
                nn.MaxPool2d(2, ceil_mode=True),
            )
            channels = outputs
        self.stages = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)  # (N, channels, 1, 1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of frames (N, C, H, W)."""
        return self.head(self.flatten(self.pool(self.stages(x))))  # type: ignore[no-any-return]


@register(image_size=16)
def event_cnn(*, num_classes: int, in_channels: int, width: int = 32, stages: int = 4) -> nn.Module:
    """CNN for event frames: stages of two convolutions and a max pooling, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input: 2, or 2 for each bin.
        width: channels of the first stage; each further stage has twice as many.
        stages: how many.
    """
    require_positive("event_cnn", width=width, stages=stages)
    return EventCNN(in_channels, num_classes, width, stages)
