"""Groups of layers that several networks are built of."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def conv_norm_relu(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution without bias, batch norm and ReLU: (N, inputs, H, W) -> (N, outputs, H, W)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(),
        )
    )
