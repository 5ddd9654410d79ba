"""``imagenet-1k`` and ``tiny-imagenet-200``, from folders of pictures; ImageNet also from WebDataset shards.

    imagenet-1k          train/<class>/*.JPEG and val/<class>/*.JPEG, 1,000 classes        (folder)
                         *train*.tar and *val*.tar, pictures beside their labels           (shards)
    tiny-imagenet-200    wnids.txt, train/<class>/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt

ImageNet's validation part is what everybody tests on, and is the test part here, too. The same holds for Tiny-ImageNet,
whose own test part has no labels.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from polarspike.data.augment import Augmentation
from polarspike.data.local import cache, nested
from polarspike.data.normalization import Normalization
from polarspike.data.pictures import Files, Pictures, Shards
from polarspike.data.reading import lines_of, visible
from polarspike.data.registry import FOLDER_VARIABLE, Shape, Source, register
from polarspike.data.streamed import StreamedDataset
from polarspike.decoding import SUFFIXES
from polarspike.errors import DataError

#: Pictures of the training and the test part; other numbers are an unfinished copy.
COUNTS = {"imagenet-1k": (1_281_167, 50_000), "tiny-imagenet-200": (100_000, 10_000)}
CLASSES = {"imagenet-1k": 1000, "tiny-imagenet-200": 200}
# The customary figures, not recomputed from 1.3 million pictures.
_NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@register("imagenet-1k", Shape(3, 224, 224, 1000))
def imagenet_1k(source: Source) -> StreamedDataset:
    """1,281,167 training and 50,000 validation pictures of 1,000 classes, at 224x224 pixels.

    Raises:
        DataError: neither layout is there, or it is not whole.
    """
    name = "imagenet-1k"
    places = source.folders(name, cache(name))
    for place in places:
        _require_unpacked(name, place)
        if (place / "train").is_dir() and (place / "val").is_dir():
            classes = _folders(place / "train")
            parts: list[Pictures] = [_by_folder(place / part, classes) for part in ("train", "val")]
            return _imagenet(name, place, parts, classes)
        shards = [visible(place.glob(f"*{part}*.tar")) for part in ("train", "val")]
        if all(shards):
            classes = tuple(f"class {index}" for index in range(CLASSES[name]))
            return _imagenet(name, place, [Shards(paths) for paths in shards], classes)
    raise DataError(
        f"{name}: expected train/<class>/*.JPEG and val/<class>/*.JPEG, or *train*.tar and *val*.tar (WebDataset), in one "
        f"of: {', '.join(map(str, places))}. Get them from https://www.image-net.org (registration), or name the folder by "
        f"root or as ${FOLDER_VARIABLE}/{name}"
    )


@register("tiny-imagenet-200", Shape(3, 64, 64, 200))
def tiny_imagenet_200(source: Source) -> StreamedDataset:
    """100,000 training and 10,000 validation pictures of 64x64 pixels in 200 classes.

    Raises:
        DataError: files are missing, or it is not whole.
    """
    name = "tiny-imagenet-200"
    places = source.folders(name, cache(name))
    for place in nested(places, name):
        if all((place / part).exists() for part in ("wnids.txt", "train", "val/val_annotations.txt")):
            classes = tuple(line for line in lines_of(place / "wnids.txt") if line)
            train = _by_folder(place / "train", classes, inner="images")
            test = _annotated(place / "val", classes)
            _require(name, place, [train, test], classes)
            return StreamedDataset(
                name, train, test, classes,
                origin="Stanford CS231n, Tiny ImageNet Challenge; pictures of ImageNet",
                licence="that of ImageNet: research and education, no commercial use",
                normalization=_NORMALIZATION,
                augmentation=Augmentation(flip=True),
                size=64,
                resize=64,
            )  # fmt: skip
    raise DataError(
        f"{name}: expected wnids.txt, train/<class>/images and val/val_annotations.txt in one of: "
        f"{', '.join(map(str, places))}. Unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there, or name the folder "
        f"by root or as ${FOLDER_VARIABLE}/{name}"
    )


def _require_unpacked(name: str, place: Path) -> None:
    """Refuse what image-net.org hands out before it is unpacked and sorted, which is easily taken for something else."""
    if packed := visible(place.glob("ILSVRC*_img_*.tar")):
        raise DataError(
            f"{name}: expected folders of pictures or WebDataset shards in {place}, got {packed[0].name} as image-net.org "
            "has it; unpack it: the training archive into train/, where every inner nXXXXXXXX.tar goes into a folder of its "
            "name, and the validation archive into val/, its pictures sorted into folders of the same names"
        )
    if inner := visible((place / "train").glob("n*.tar")):
        raise DataError(
            f"{name}: expected folders of classes in {place / 'train'}, got {len(inner)} archives such as {inner[0].name}; "
            "unpack each into a folder of its name"
        )
    if flat := visible((place / "val").glob("ILSVRC*.JPEG")):
        raise DataError(
            f"{name}: expected folders of classes in {place / 'val'}, got {len(flat)} pictures such as {flat[0].name}; sort "
            "them into folders of the names in train/, by the ground truth of the development kit"
        )


def _imagenet(name: str, place: Path, parts: list[Pictures], classes: tuple[str, ...]) -> StreamedDataset:
    _require(name, place, parts, classes)
    train, test = parts
    return StreamedDataset(
        name,
        train,
        test,
        classes=classes,
        origin="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015",
        licence="research and education, no commercial use (terms of access of image-net.org)",
        normalization=_NORMALIZATION,
        augmentation=Augmentation(flip=True),
    )


def _require(name: str, place: Path, parts: list[Pictures], classes: tuple[str, ...]) -> None:
    if len(classes) != CLASSES[name]:
        raise DataError(
            f"{name}: expected {CLASSES[name]} classes in {place}, got {len(classes)}; the copy is not whole"
        )
    for part, pictures, expected in zip(("train", "val"), parts, COUNTS[name], strict=True):
        if len(pictures) != expected:
            raise DataError(
                f"{name}: expected {expected} pictures in the {part} part of {place}, got {len(pictures)}; the copy is not "
                "whole"
            )


def _folders(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in visible(folder.iterdir()) if path.is_dir())


def _by_folder(folder: Path, classes: tuple[str, ...], inner: str = "") -> Files:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = folder / name / inner
        if not found.is_dir():
            raise DataError(
                f"{folder}: expected a folder {name}/{inner} of pictures, found none; the copy is not whole"
            )
        for path in (path for path in visible(found.iterdir()) if path.suffix.lower() in SUFFIXES):
            paths.append(path)
            labels.append(label)
    return Files(paths, labels)


def _annotated(folder: Path, classes: tuple[str, ...]) -> Files:
    """Pictures whose classes stand in a text file: name, class, and more, parted by tabs."""
    known = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for line in filter(str.strip, lines_of(folder / "val_annotations.txt")):
        file, *rest = line.split("\t")
        if not rest or rest[0] not in known:
            raise DataError(f"{folder / 'val_annotations.txt'}: expected lines of FILE, CLASS, got {line!r}")
        paths.append(folder / "images" / file)
        labels.append(known[rest[0]])
    if len(set(paths)) < len(paths):
        twice = next(path.name for path, count in Counter(paths).items() if count > 1)
        raise DataError(f"{folder / 'val_annotations.txt'}: expected one line for a picture, got more for {twice}")
    there = {path.name for path in visible((folder / "images").glob("*"))}
    if missing := [path for path in paths if path.name not in there]:
        raise DataError(
            f"{missing[0]}: expected this picture, which val_annotations.txt names ({len(missing)} of {len(paths)} are not "
            "there); unpack the archive again"
        )
    return Files(paths, labels)
