"""Residual networks of basic blocks: ResNet-18, ResNet-34, and the three-stage ResNet-20 of the CIFAR experiments."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from polarspike.errors import SpecError
from polarspike.models.initialization import initialize
from polarspike.models.registry import register, require_positive

Stem = Literal["cifar", "imagenet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    The shortcut is the identity, or a strided 1x1 convolution with batch norm where the shape changes.
    (N, inputs, H, W) -> (N, outputs, ceil(H/stride), ceil(W/stride)).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
                    norm=nn.BatchNorm2d(outputs),
                )
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, see the class."""
        branch = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(branch + self.shortcut(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A stem, stages of basic blocks that double the channels and halve the resolution, and a linear head.

    Source: He et al. 2016, arXiv 1512.03385; all shortcuts that change shape are projections (their option B).

    Args:
        in_channels: C of the input (N, C, H, W); any H and W from 1 up.
        num_classes: length of the output.
        width: channels of the stem and the first stage.
        depths: blocks of each stage.
        stem: ``"cifar"``, a 3x3 convolution at full resolution, or ``"imagenet"``, a 7x7 convolution of stride 2
            and a max pooling of stride 2.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, depths: tuple[int, ...], stem: Stem) -> None:
        super().__init__()
        self.stem = _stem(in_channels, width, stem)
        self.stages = nn.Sequential()
        channels = width
        for number, depth in enumerate(depths):
            outputs = width * 2**number
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks[f"block{index + 1}"] = BasicBlock(channels, outputs, stride)
                channels = outputs
            self.stages.add_module(f"stage{number + 1}", nn.Sequential(blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)  # (N, channels, 1, 1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        return self.head(self.flatten(self.pool(self.stages(self.stem(x)))))  # type: ignore[no-any-return]


def _stem(in_channels: int, width: int, stem: Stem) -> nn.Sequential:
    if stem not in ("cifar", "imagenet"):
        raise SpecError(f"resnet: expected stem to be 'cifar' or 'imagenet', got {stem!r}")
    kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, width, kernel, stride=stride, padding=kernel // 2, bias=False),
        norm=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
    )
    if stem == "imagenet":
        layers["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(layers)


@register(image_size=16)
def resnet18(*, num_classes: int, in_channels: int, width: int = 64, stem: Stem = "cifar") -> nn.Module:
    """ResNet-18: four stages of two basic blocks, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: channels of the first stage; each further stage has twice as many.
        stem: ``"cifar"`` or ``"imagenet"``, see :class:`ResNet`.
    """
    require_positive("resnet18", width=width)
    return ResNet(in_channels, num_classes, width, (2, 2, 2, 2), stem)


@register(image_size=16)
def resnet34(*, num_classes: int, in_channels: int, width: int = 64, stem: Stem = "cifar") -> nn.Module:
    """ResNet-34: four stages of 3, 4, 6 and 3 basic blocks, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: channels of the first stage; each further stage has twice as many.
        stem: ``"cifar"`` or ``"imagenet"``, see :class:`ResNet`.
    """
    require_positive("resnet34", width=width)
    return ResNet(in_channels, num_classes, width, (3, 4, 6, 3), stem)


@register(image_size=16)
def resnet20(*, num_classes: int, in_channels: int, width: int = 16, blocks: int = 3) -> nn.Module:
    """ResNet-20 for small images: three stages of three basic blocks, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: channels of the first stage; the second and third have 2 and 4 times as many.
        blocks: basic blocks of each stage; the network has 6 ``blocks`` + 2 layers.
    """
    require_positive("resnet20", width=width, blocks=blocks)
    return ResNet(in_channels, num_classes, width, (blocks, blocks, blocks), "cifar")
