"""Networks to train and convert, plain ``nn.Module`` code under one registry.

>>> from polarspike import models
>>> models.names()
['cnn', 'event_cnn', 'mlp', 'resnet18', 'resnet20', 'resnet34', 'resnet9', 'vgg16', 'vit']
>>> net = models.create("cnn", num_classes=10, in_channels=1, width=8)
"""

from polarspike.models import cnn, event_cnn, mlp, resnet, resnet9, vgg, vit
from polarspike.models.registry import ModelEntry, create, describe, names, register

__all__ = [
    "ModelEntry",
    "cnn",
    "create",
    "describe",
    "event_cnn",
    "mlp",
    "names",
    "register",
    "resnet",
    "resnet9",
    "vgg",
    "vit",
]
