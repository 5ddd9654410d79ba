"""Image data sets in memory, with fixed parts, and batches of them.

>>> from polarspike import data
>>> digits = data.load("digits")
>>> images, labels = next(iter(data.batches(digits.train, 64, normalization=digits.normalization)))
>>> images.shape
torch.Size([64, 1, 8, 8])
"""

from polarspike.data import cifar, digits, events, fashion_mnist, mnist_5k, photo_patches
from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.loaders import batches
from polarspike.data.normalization import Normalization
from polarspike.data.registry import load, names, register
from polarspike.data.splits import Split

__all__ = [
    "Augmentation",
    "ImageDataset",
    "Normalization",
    "Split",
    "batches",
    "cifar",
    "digits",
    "events",
    "fashion_mnist",
    "load",
    "mnist_5k",
    "names",
    "photo_patches",
    "register",
]
