"""What the tests of data sets that stay on disk share."""

from __future__ import annotations

import pytest

from polarspike.data import imagenet
from polarspike.data.streamed import StreamedDataset


@pytest.fixture
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet and its small relative as `tests.data.pictures` makes them, and none of this machine's."""
    from tests.data.pictures import CLASSES, EACH, small_images

    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    for name in ("imagenet-1k", "tiny-imagenet-200"):
        monkeypatch.setitem(imagenet.COUNTS, name, (CLASSES * EACH, CLASSES * 2))
        monkeypatch.setitem(imagenet.CLASSES, name, CLASSES)
    monkeypatch.setattr(StreamedDataset, "__init__", small_images(StreamedDataset.__init__))
