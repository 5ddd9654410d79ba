"""Small pictures in the layouts of data sets that stay on disk, for the tests of their readers and of their batches."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from polarspike.data.streamed import StreamedDataset

pil = pytest.importorskip("PIL.Image")
CLASSES, EACH = 3, 4


def small_images(init: Callable[..., None]) -> Callable[..., None]:
    """ImageNet at 32 pixels in place of 224, for the tests' sake."""

    def made(self: StreamedDataset, *args: object, **kwargs: object) -> None:
        init(self, *args, **{"size": 32, "resize": 36, **kwargs})

    return made


def jpeg(label: int, size: tuple[int, int] = (60, 48), format: str = "JPEG") -> bytes:
    """A picture whose left half has the red of its label, and whose right half is black."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2, 0] = 80 * (label + 1)
    out = io.BytesIO()
    pil.fromarray(pixels).save(out, format)
    return out.getvalue()


def folders(root: Path) -> Path:
    for part, each in (("train", EACH), ("val", 2)):
        for label in range(CLASSES):
            folder = root / part / f"n0000000{label}"
            folder.mkdir(parents=True)
            for index in range(each):
                (folder / f"n0000000{label}_{index}.JPEG").write_bytes(jpeg(label))
    return root


def shards(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    samples = {"train": EACH, "val": 2}
    for part, each in samples.items():
        for number in range(2):  # two shards of a part
            with tarfile.open(root / f"imagenet-{part}-{number:06}.tar", "w") as shard:
                for index in range(CLASSES * each // 2):
                    label = (index + number) % CLASSES
                    key = f"{part}_{number}_{index}"
                    entries = {"jpg": jpeg(label), "cls": str(label).encode()}
                    for suffix, content in entries.items():
                        info = tarfile.TarInfo(f"{key}.{suffix}")
                        info.size = len(content)
                        shard.addfile(info, io.BytesIO(content))
    return root


def tiny(root: Path) -> Path:
    root = root / "tiny-imagenet-200"
    names = [f"n0000000{label}" for label in range(CLASSES)]
    for label, name in enumerate(names):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for index in range(EACH):
            (folder / f"{name}_{index}.JPEG").write_bytes(jpeg(label, (64, 64)))
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for index in range(2 * CLASSES):
        (root / "val" / "images" / f"val_{index}.JPEG").write_bytes(jpeg(index % CLASSES, (64, 64)))
        lines.append(f"val_{index}.JPEG\t{names[index % CLASSES]}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


LAYOUTS = {"folders": ("imagenet-1k", folders), "shards": ("imagenet-1k", shards), "tiny": ("tiny-imagenet-200", tiny)}
