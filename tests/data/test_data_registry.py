"""The registry of data sets: names, wrong names, and where files are looked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polarspike import data
from polarspike.data import registry
from polarspike.data.registry import Source
from polarspike.errors import DataError


def test_names_are_those_promised() -> None:
    assert set(data.names()) >= {"digits", "fashion-mnist", "mnist-5k"}
    assert data.names() == sorted(data.names())


def test_the_page_of_data_sets_has_each_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    layouts, _, terms = page.partition("## Origin and licence")
    for name in data.names():
        assert f"\n| `{name}` |" in layouts and f"`{name}`" in terms, name


def test_an_unknown_name_lists_the_known_ones_and_the_closest() -> None:
    with pytest.raises(DataError) as caught:
        data.load("fashion_mnist")
    known = ", ".join(data.names())
    assert str(caught.value) == f"unknown data set 'fashion_mnist'; known: {known}; did you mean 'fashion-mnist'?"
    with pytest.raises(DataError, match=r"unknown data set 'zzz'; known: [\w, -]+$"):
        data.load("zzz")


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fashion-mnist: expected root to be a folder, got .*nowhere"):
        data.load("fashion-mnist", tmp_path / "nowhere")


def test_a_registered_reader_is_used_and_its_name_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    digits = data.load("digits")
    seen: list[Source] = []

    @data.register("toy", data.Shape(1, 4, 4, 2))
    def toy(source: Source) -> data.ImageDataset:
        """A toy."""
        seen.append(source)
        return digits

    assert data.load("toy", tmp_path, download=True) is digits and data.describe("toy").summary == "A toy."
    assert seen == [Source(tmp_path, download=True)]
    with pytest.raises(DataError, match=r"the data set name 'toy' is already registered by [\w.]*test_data_registry"):
        data.register("toy", data.Shape(1, 4, 4, 2))(toy)


def test_the_order_of_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = Path("/usual")
    monkeypatch.delenv("POLARSPIKE_DATA", raising=False)
    assert Source().folders("toy", usual) == [usual]
    monkeypatch.setenv("POLARSPIKE_DATA", str(tmp_path))
    assert Source().folders("toy", usual) == [tmp_path / "toy", usual]
    assert Source(root=Path("/mine")).folders("toy", usual) == [Path("/mine")]


@pytest.mark.slow
def test_importing_the_data_sets_imports_no_optional_package() -> None:
    code = "import sys, polarspike.data; print(sorted({'torchvision', 'mlxtend', 'sklearn'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
