"""Networks by name, from weights and from factories; and that no file is ever executed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polarspike import sources
from polarspike.data import Normalization
from polarspike.errors import CheckpointError, MissingExtraError, SpecError
from polarspike.sources import Preprocessing
from polarspike.sources.preprocessing import IMAGENET
from tests.foreign import Net, Touch, hide

FACTORY = """
from torch import nn
from beside import WIDTH

def create(classes=5):
    layers = nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(WIDTH, classes))

def fail():
    raise ZeroDivisionError("on purpose")

def none():
    return None

net = nn.Linear(2, 3)
number = 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "nets.py").write_text(FACTORY)
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    yield f"{tmp_path / 'nets.py'}:create"
    sys.modules.pop("beside", None)


# --- weights ------------------------------------------------------------------------------------------------------------


def test_weights_of_either_kind_of_file(tmp_path: Path) -> None:
    state = Net().state_dict()
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        held = sources.read_weights(tmp_path / name)
        assert held.keys() == state.keys() and all(torch.equal(held[key], state[key]) for key in state)


@pytest.mark.parametrize("entry", ["state_dict", "model", "net.params"])
def test_nested_weights_and_prefixes_are_unwrapped_and_said(tmp_path: Path, entry: str) -> None:
    net, said = Net(), []
    content: Any = {f"module._orig_mod.{name}": value for name, value in net.state_dict().items()}
    for name in reversed(entry.split(".")):
        content = {"epoch": 3, name: content}
    torch.save(content, tmp_path / "w.pt")
    other = sources.fit_weights(
        Net(), sources.read_weights(tmp_path / "w.pt", said.append), tmp_path / "w.pt", "net", said.append
    )
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())
    assert said == [
        f"weights: taken from the entry '{entry}' of the file",
        "weights: the prefix 'module.' is left out of every name",
        "weights: the prefix '_orig_mod.' is left out of every name",
    ]


def test_a_prefix_of_the_model_itself_stays(tmp_path: Path) -> None:
    model, said = nn.Sequential(), []
    model.add_module("model", Net())
    sources.fit_weights(model, model.state_dict(), tmp_path, "net", said.append)
    assert said == []


def test_old_names_of_densenets() -> None:
    model = nn.Module()
    model.add_module("denselayer1", nn.Sequential())
    model.denselayer1.add_module("norm1", nn.BatchNorm2d(3))
    old = {name.replace("norm1", "norm.1"): value for name, value in model.state_dict().items()}
    sources.fit_weights(model, old, Path("w.pth"), "densenet")


def test_weights_that_do_not_fit_are_one_error() -> None:
    state = Net().state_dict()
    del state["conv.bias"], state["norm.num_batches_tracked"]
    state["head.weight"], state["aux.weight"] = torch.zeros(9, 4), torch.zeros(1)
    with pytest.raises(CheckpointError) as refusal:
        sources.fit_weights(Net(), state, Path("w.pth"), "package:net")
    assert "w.pth: does not fit package:net, which expects 10 tensors; the file holds 9, " in str(refusal.value)
    assert "1 missing: conv.bias; 1 unexpected: aux.weight; " in str(refusal.value)
    assert "1 of another shape: head.weight (model (5, 4), file (9, 4))" in str(refusal.value)


def test_only_the_first_few_names_are_listed() -> None:
    with pytest.raises(CheckpointError, match=r"9 missing: scale, conv\.weight, conv\.bias and more\. Give"):
        sources.fit_weights(Net(), {}, Path("w.pth"), "net")


def test_a_pickle_is_refused_unexecuted(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    for content in (Touch(witness), {"state_dict": Net().state_dict(), "extra": Touch(witness)}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="holds pickled Python objects, or is damaged; it was not executed"):
            sources.read_weights(tmp_path / "w.pth")
        assert not witness.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the test can fail: without restriction it is executed
    assert witness.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"torch.save\(model.state_dict\(\)"):
        sources.read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3}, "expected a state dict .* got entries \\['epoch'\\]"),
        ({"state_dict": {"a": 1}}, "got entries \\['a'\\] in 'state_dict'"),
        ([torch.zeros(2)], "got list"),
        ({}, "got entries \\[\\]"),
    ],
    ids=str,
)
def test_files_without_a_state_dict(tmp_path: Path, content: Any, says: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=says):
        sources.read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_that_hold_no_weights(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"w.{ending}"
    with pytest.raises(CheckpointError, match="found nothing; give a local"):
        sources.read_weights(file)
    with pytest.raises(CheckpointError, match="found a folder"):
        sources.read_weights(tmp_path)
    for content in (b"", b"these are no weights", bytes(200)):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(file)):
            sources.read_weights(file)


# --- factories ----------------------------------------------------------------------------------------------------------


def test_a_factory_in_a_file(factory: str, tmp_path: Path) -> None:
    model = sources.build(factory, random_weights=True, options={"classes": 7})
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 7) and not model.training
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = sources.build(factory, tmp_path / "w.safetensors", options={"classes": 7})
    assert torch.equal(again[5].weight, model[5].weight)
    assert str(tmp_path) not in sys.path


def test_a_factory_in_a_module(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources.build("torch.nn:Linear", random_weights=True, options={"in_features": 2, "out_features": 3})
    monkeypatch.chdir(tmp_path)
    assert isinstance(sources.build("nets:net", random_weights=True), nn.Linear)
    del sys.modules["nets"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("creat", "has no 'creat'; callable there: create, fail, none, net; did you mean 'create'?"),
        ("fail", "the factory fails with ZeroDivisionError: on purpose"),
        ("none", "it returned NoneType"),
        ("number", "expected a function that returns an nn.Module, got int"),
        ("a b", "expected FILE.py:FACTORY or PACKAGE.MODULE:FACTORY"),
    ],
)
def test_factories_that_do_not_work(factory: str, name: str, says: str) -> None:
    with pytest.raises(SpecError) as refusal:
        sources.build(f"{factory.rpartition(':')[0]}:{name}", random_weights=True)
    assert says in str(refusal.value)


def test_code_that_does_not_work(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for reference, says in (
        (f"{tmp_path / 'broken.py'}:create", "the code fails with ZeroDivisionError"),
        (f"{tmp_path / 'missing.py'}:create", "expected a Python file, found nothing"),
        ("no_such_package.nets:create", "the code fails with ModuleNotFoundError: No module named 'no_such_package'"),
        (str(tmp_path / "broken.py"), "expected the name of a factory behind the file"),
    ):
        with pytest.raises(SpecError, match=says):
            sources.build(reference, random_weights=True)
    assert "_polarspike_source_broken" not in sys.modules


def test_options_that_a_factory_does_not_have(factory: str) -> None:
    with pytest.raises(SpecError, match=r"the factory fails with TypeError: .*'clases'"):
        sources.build(factory, random_weights=True, options={"clases": 3})


# --- named networks -----------------------------------------------------------------------------------------------------


def test_weights_are_asked_for_and_never_fetched() -> None:
    for reference in ("torchvision:resnet18", "resnet18", "timm:resnet18", "torch.nn:Identity"):
        with pytest.raises(SpecError, match=r"expected weights, .* \(nothing is downloaded\)"):
            sources.build(reference)


def test_a_file_of_weights_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="does not say what network they belong to; expected torchvision:NAME"):
        sources.build("resnet18.pth", random_weights=True)


def test_unknown_names_get_the_closest() -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(SpecError, match=r"torchvision has no network 'resnet81' .*; the closest: resnet18"):
        sources.build("resnet81", random_weights=True)
    pytest.importorskip("timm")
    with pytest.raises(SpecError, match=r"timm has no network 'vit_smal_patch16_224' .*vit_small_patch16_224"):
        sources.build("timm:vit_smal_patch16_224", random_weights=True)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    hide(monkeypatch, package)
    with pytest.raises(MissingExtraError, match=f"'{package}' is not installed"):
        sources.build(f"{package}:resnet18", random_weights=True)


def test_nothing_of_a_backbone_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    model = sources.build("lraspp_mobilenet_v3_large", random_weights=True)
    assert model(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 21, 32, 32)
    with pytest.raises(SpecError, match=r"the options \['weights'\] are set here, so that nothing is downloaded"):
        sources.build("resnet18", random_weights=True, options={"weights": "DEFAULT"})


def test_the_number_of_classes_is_that_of_the_weights(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    said: list[str] = []
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "w.pth")
    model = sources.build("torchvision:squeezenet1_1", tmp_path / "w.pth", say=said.append)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7) and said == ["weights: 7 classes"]
    with pytest.raises(CheckpointError, match="2 of another shape"):
        sources.build("squeezenet1_1", tmp_path / "w.pth", options={"num_classes": 9})
    with pytest.raises(CheckpointError, match="does not fit mnasnet0_5"):
        sources.build("mnasnet0_5", tmp_path / "w.pth")


def test_a_network_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    made = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **options)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    model = sources.build("timm:vit_tiny_patch16_224", tmp_path / "w.safetensors", options=options)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), made.eval()(x))
    with pytest.raises(SpecError, match="cannot be built with the options"):
        sources.build("timm:vit_tiny_patch16_224", random_weights=True, options={"imgsize": 3})


def test_what_packages_say_about_images() -> None:
    pytest.importorskip("torchvision")
    assert sources.preprocessing("resnet18") == Preprocessing((3, 224, 224), IMAGENET, 0.875)
    assert sources.preprocessing("vit_b_16", {"image_size": 96}).shape == (3, 96, 96)
    assert sources.preprocessing("lraspp_mobilenet_v3_large") == Preprocessing(normalization=IMAGENET)
    assert sources.preprocessing("package.module:create") == Preprocessing()
    pytest.importorskip("timm")
    known = sources.preprocessing("timm:vit_small_patch16_224")
    assert known == Preprocessing((3, 224, 224), Normalization((0.5,) * 3, (0.5,) * 3), 0.9)


def test_a_torchscript_archive_is_said_without_the_advice_to_trust_it(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    with pytest.raises(CheckpointError, match="TorchScript archive") as caught:
        sources.read_weights(tmp_path / "net.pt")
    assert "arbitrary code" not in str(caught.value) and "weights_only" not in str(caught.value)
