"""The registry of networks: names, entries, and what it says to wrong input."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch import nn

from polarspike import models
from polarspike.errors import SpecError
from polarspike.models import registry


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_names_are_those_promised() -> None:
    assert set(models.names()) >= {"mlp", "cnn", "vgg16", "resnet18", "resnet20", "resnet34"}
    assert models.names() == sorted(models.names())


def test_every_entry_describes_itself() -> None:
    for name in models.names():
        entry = models.describe(name)
        assert entry.name == name == entry.build.__name__
        assert entry.summary.endswith(".")
        assert "width" in entry.options
        assert entry.example_shape(3, batch=4) == (4, 3, entry.image_size, entry.image_size)


def test_only_the_mlp_needs_the_image_size() -> None:
    assert [name for name in models.names() if models.describe(name).needs_image_size] == ["mlp", "vit"]


@pytest.mark.usefixtures("scratch_registry")
def test_a_registered_builder_can_be_created() -> None:
    @models.register(image_size=4)
    def thing(*, num_classes: int, in_channels: int, size: int = 1) -> nn.Module:
        """A thing."""
        return nn.Conv2d(in_channels, num_classes, size)

    net = models.create("thing", num_classes=3, in_channels=2, size=5)
    assert isinstance(net, nn.Conv2d)
    assert (net.in_channels, net.out_channels, net.kernel_size) == (2, 3, (5, 5))
    assert models.describe("thing").summary == "A thing."
    assert models.describe("thing").example_shape() == (2, 3, 4, 4)


@pytest.mark.usefixtures("scratch_registry")
def test_a_taken_name_is_refused() -> None:
    def cnn(*, num_classes: int, in_channels: int) -> nn.Module:
        """Another one."""
        return nn.Linear(in_channels, num_classes)

    before = models.describe("cnn")
    with pytest.raises(SpecError, match=r"'cnn' is already registered by polarspike\.models\.cnn\.cnn; rename"):
        models.register(image_size=4)(cnn)
    assert models.describe("cnn") is before


@pytest.mark.usefixtures("scratch_registry")
def test_a_builder_must_take_classes_and_channels_and_have_a_docstring() -> None:
    def odd(*, num_classes: int) -> nn.Module:
        """Odd."""
        return nn.Linear(1, num_classes)

    def mute(*, num_classes: int, in_channels: int) -> nn.Module:
        return nn.Linear(in_channels, num_classes)

    with pytest.raises(SpecError, match="'odd' must take in_channels"):
        models.register(image_size=4)(odd)
    with pytest.raises(SpecError, match="'mute' needs a docstring"):
        models.register(image_size=4)(mute)
    assert not {"odd", "mute"} & set(models.names())


def test_an_unknown_name_lists_the_known_ones_and_the_closest() -> None:
    with pytest.raises(SpecError) as caught:
        models.create("resnet-18", num_classes=10)
    known = ", ".join(models.names())
    assert str(caught.value) == f"unknown model 'resnet-18'; known: {known}; did you mean 'resnet18'?"
    with pytest.raises(SpecError, match=r"unknown model 'zzz'; known: [\w, ]+$"):
        models.describe("zzz")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="model 'resnet18' has no option depth; its options: width, stem"):
        models.create("resnet18", num_classes=10, depth=3)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"num_classes": 0}, "expected num_classes to be an integer of at least 1, got 0"),
        ({"in_channels": 1.0}, "expected in_channels to be an integer of at least 1, got 1.0"),
        ({"width": True}, "expected width to be an integer of at least 1, got True"),
        ({"width": float("nan")}, "expected width to be an integer of at least 1, got nan"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object], text: str) -> None:
    for name in models.names():
        with pytest.raises(SpecError) as caught:
            models.create(name, **{"num_classes": 10, **wrong})  # type: ignore[arg-type]
        assert str(caught.value) == f"model {name!r}: {text}"


@pytest.mark.slow
def test_importing_the_models_imports_no_optional_package() -> None:
    code = "import sys, polarspike.models; print(sorted({'torchvision', 'timm'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
