"""Image data sets with fixed parts, in memory or on disk, and batches of them.

``registry`` knows them by name: ``digits``, ``mnist_5k``, ``fashion_mnist``, ``cifar``, ``imagenet``, ``photo_patches``,
and the event cameras of ``events``. Files: ``local`` finds them, ``reading`` reads or refuses one, ``idx`` and
``pictures`` are formats. In memory: ``dataset``, ``splits`` and ``parts``; on disk: ``streamed``. ``loaders`` make
batches, with ``normalization`` and ``augment``.

>>> from polarspike import data
>>> digits = data.load("digits")
>>> images, labels = next(iter(data.batches(digits.train, 64, normalization=digits.normalization)))
>>> images.shape
torch.Size([64, 1, 8, 8])
"""

from polarspike.data import cifar, digits, events, fashion_mnist, imagenet, mnist_5k, photo_patches
from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.loaders import batches
from polarspike.data.normalization import Normalization
from polarspike.data.registry import AnyDataset, Shape, describe, load, names, register, shape_of
from polarspike.data.splits import Split
from polarspike.data.streamed import StreamedDataset

__all__ = [
    "AnyDataset",
    "Augmentation",
    "ImageDataset",
    "Normalization",
    "Shape",
    "Split",
    "StreamedDataset",
    "batches",
    "cifar",
    "describe",
    "digits",
    "events",
    "fashion_mnist",
    "imagenet",
    "load",
    "mnist_5k",
    "names",
    "photo_patches",
    "register",
    "shape_of",
]
