"""Small event data sets in their real layouts, as archives leave them when they are unpacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from polarspike.data import cifar

from .test_formats import aedat2_bytes, aedat31_bytes, bin_bytes

Events = list[tuple[int, int, int, int]]

#: How many recordings each has here, and how many classes where that is fewer: what tests put in place of the real numbers.
COUNTS = {
    "n-mnist": (30, 10),
    "n-caltech101": (24,),
    "cifar10-dvs": (200,),
    "dvs128-gesture": (2, 2),
    "dvs128-gesture, packed": (2, 2),
}
CLASSES = {"n-caltech101": 2}


def some(label: int, index: int, limit: int) -> Events:
    """Events that tell label and sample: one pixel of each."""
    return [(label % limit, 0, 10, 1), (index % limit, 1, 20, 0), (2, 2, 30, 1)]


def n_mnist(root: Path) -> Path:
    for part, each in (("Train", 3), ("Test", 1)):
        for digit in range(10):
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            for index in range(each):
                (folder / f"{index:05}.bin").write_bytes(bin_bytes(some(digit, index, 34)))
    return root


def n_caltech101(root: Path) -> Path:
    for label, name in enumerate(("BACKGROUND_Google", "Faces_easy")):
        folder = root / "Caltech101" / name
        folder.mkdir(parents=True)
        for index in range(12):
            (folder / f"image_{index:04}.bin").write_bytes(bin_bytes(some(label, index, 200)))
    return root


def cifar10_dvs(root: Path, kind: str = "aedat", written: Callable[[Events], bytes] = aedat2_bytes) -> Path:
    for label, name in enumerate(cifar.CLASSES_10):
        (root / name).mkdir(parents=True)
        for index in range(20):
            (root / name / f"cifar10_{name}_{index}.{kind}").write_bytes(written(some(label, index, 128)))
    return root


def dvs128_gesture(root: Path) -> Path:
    for part, user in (("train", "user01_led"), ("test", "user24_lab")):
        (root / f"trials_to_{part}.txt").write_text(f"{user}.aedat\n\n")
        (root / f"{user}.aedat").write_bytes(aedat31_bytes([(1, 1, 100, 1), (2, 2, 200, 0), (3, 3, 300, 1)]))
        (root / f"{user}_labels.csv").write_text("class,startTime_usec,endTime_usec\n1,100,201\n11,300,400\n")
    return root


def packed_gestures(root: Path) -> Path:
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        folder = root / part / "user01_lab"
        folder.mkdir(parents=True)
        for label in (0, 10):
            np.save(folder / f"{label}.npy", np.array([[label, 1, 1, 0.1], [2, 2, 0, 0.2]]))
    return root


MAKERS = {
    "n-mnist": (n_mnist, 30, 10, (34, 34), 10),
    "n-caltech101": (n_caltech101, 22, 2, (180, 240), 2),
    "cifar10-dvs": (cifar10_dvs, 180, 20, (128, 128), 10),
    "dvs128-gesture": (dvs128_gesture, 2, 2, (128, 128), 11),
}
