"""``digits``: 1,797 handwritten digits of 8x8 pixels, inside this package."""

from __future__ import annotations

from pathlib import Path

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.idx import read_labelled_images
from polarspike.data.normalization import Normalization
from polarspike.data.registry import Shape, Source, register
from polarspike.data.splits import Split, stratified
from polarspike.errors import DataError

FILES = Path(__file__).parent / "files"
IMAGES = "digits-images-idx3-ubyte.gz"
LABELS = "digits-labels-idx1-ubyte.gz"
SPLIT_SEED = 0
TEST_FRACTION = 0.2


@register("digits", Shape(1, 8, 8, 10))
def digits(source: Source) -> ImageDataset:
    """1,438 training and 359 test images; the split is stratified with seed 0.

    The source's grey values 0..16 become bytes as floor(v * 255 / 16 + 1/2). The source does not say who wrote which
    digit, so the same hand may occur in both parts: use it for tests and examples, not for claims.

    Raises:
        DataError: a root was given, or the package's own files are damaged.
    """
    if source.root is not None:
        raise DataError(f"digits: it is part of the package and read from no other folder, got root {source.root}")
    sixteenths, labels = read_labelled_images(FILES / IMAGES, FILES / LABELS)
    if int(sixteenths.max()) > 16:
        raise DataError(f"{FILES / IMAGES}: expected grey values 0..16, got {int(sixteenths.max())}; install it again")
    images = ((sixteenths.int() * 255 + 8) // 16).byte()  # (N, 1, 8, 8)
    whole = Split(images, labels)
    kept, moved = stratified(labels, TEST_FRACTION, SPLIT_SEED)
    train = whole.subset(kept)
    return ImageDataset(
        name="digits",
        train=train,
        test=whole.subset(moved),
        classes=tuple("0123456789"),
        origin="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (test part), UCI Machine Learning "
        "Repository, 1998, doi:10.24432/C50P49; as distributed with scikit-learn",
        licence="data: CC BY 4.0 (UCI); scikit-learn's file: BSD-3-Clause; see NOTICE.md beside this module",
        normalization=Normalization.of(train.images),
        augmentation=Augmentation(shift=1),
    )
