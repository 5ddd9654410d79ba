"""Write the ``digits`` files of the package from scikit-learn's copy; same release, same bytes.

Command: ``python tools/embed_digits.py`` (needs scikit-learn). Takes a second.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from polarspike.data.digits import FILES, IMAGES, LABELS
from polarspike.data.idx import write_idx


def main(folder: Path = FILES) -> None:
    """Write both files into ``folder``; the grey values 0..16 are kept as they are."""
    source = load_digits()
    images = torch.from_numpy(source.images)  # (1797, 8, 8) float64
    labels = torch.from_numpy(source.target)  # (1797,)
    for values in (images, labels):
        if not torch.equal(values, values.byte().to(values.dtype)):
            raise ValueError("scikit-learn's digits are no longer whole numbers in 0..255; the format needs a change")
    folder.mkdir(exist_ok=True)
    write_idx(folder / IMAGES, images.byte())
    write_idx(folder / LABELS, labels.byte())


if __name__ == "__main__":
    main()
