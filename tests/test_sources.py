"""Networks by name, from weights, from factories and exported programs; images; and that no file is ever executed."""

import builtins
import contextlib
import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polarspike import data, sources
from polarspike.data import Normalization
from polarspike.errors import CheckpointError, DataError, MissingExtraError, SpecError
from polarspike.sources import Preprocessing
from polarspike.sources.preprocessing import IMAGENET, for_channels, parse_normalization, parse_shape

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


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)) * self.scale + torch.tensor(1.0))


class Touch:
    """Unpickled without restriction, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


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


# --- exported programs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network with a buffer, a constant and a free batch size."""
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes), path)
    return path


def test_an_exported_program_is_the_network(program: Path) -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(5, 3, 8, 8)
    model = sources.build(str(program))
    assert torch.equal(model(x), net(x)) and isinstance(model.train().eval(), nn.Module)
    assert model.state_dict().keys() >= net.state_dict().keys()
    assert sources.preprocessing(str(program)) == Preprocessing((3, 8, 8))
    with pytest.raises(SpecError, match="holds its weights"):
        sources.build(str(program), random_weights=True)


def test_a_fixed_batch_size_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (torch.randn(2, 3, 8, 8),)), tmp_path / "net.pt2")
    with pytest.raises(
        CheckpointError, match=r"fixed shape \(2, 3, 8, 8\), expected a free batch size: .*dynamic_shapes"
    ):
        sources.load_exported(tmp_path / "net.pt2")


def test_files_that_are_no_exported_programs(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.pt2"
    with pytest.raises(CheckpointError, match="found nothing"):
        sources.load_exported(file)
    whole = program.read_bytes()
    for content in (b"", b"no program", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a complete exported program"):
            sources.load_exported(file)
    torch.save(Net().state_dict(), file)
    with pytest.raises(CheckpointError, match="not a complete exported program"):
        sources.load_exported(file)


def pickled(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Touch(path), buffer)
    return buffer.getvalue()


def rewritten(program: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with other records."""
    with zipfile.ZipFile(program) as archive:
        root = archive.namelist()[0].split("/")[0]
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
    return target


def with_model(edit: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        model = json.loads(records["models/model.json"])
        edit(model)
        records["models/model.json"] = json.dumps(model).encode()

    return change


def first_expression(model: dict[str, Any]) -> dict[str, Any]:
    values = model["graph_module"]["graph"]["tensor_values"].values()
    return next(size["as_expr"] for value in values for size in value["sizes"] if "as_expr" in size)


def attacks(witness: Path) -> dict[str, Callable[[dict[str, bytes]], None]]:
    """Changes of an exported program that would make torch execute something, by what they use."""
    call = f"__import__('pathlib').Path({str(witness)!r}).touch()"

    def samples(records: dict[str, bytes]) -> None:
        records["data/sample_inputs/model.pt"] = pickled(witness)

    def weight(records: dict[str, bytes]) -> None:
        name = "data/weights/model_weights_config.json"
        config = json.loads(records[name])
        entry = next(iter(config["config"].values()))
        entry["use_pickle"] = True
        records[name] = json.dumps(config).encode()
        records[f"data/weights/{entry['path_name']}"] = pickled(witness)

    def constant(records: dict[str, bytes]) -> None:
        name = "data/constants/model_constants_config.json"
        config = json.loads(records[name])
        next(iter(config["config"].values())).update(path_name="opaque_obj_0", use_pickle=True)
        records[name] = json.dumps(config).encode()
        records["data/constants/opaque_obj_0"] = pickle.dumps(Touch(witness))

    def old_weights(records: dict[str, bytes]) -> None:
        records["data/weights/model.pt"] = pickled(witness)

    def library(records: dict[str, bytes]) -> None:
        records["data/aotinductor/model/model.so"] = b"no library"

    def expression(model: dict[str, Any]) -> None:
        first_expression(model)["expr_str"] = call

    def string_in_expression(model: dict[str, Any]) -> None:
        first_expression(model)["expr_str"] = f"Add({call!r}, 1)"

    def operator(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"

    def file_operator(model: dict[str, Any]) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    def name(model: dict[str, Any]) -> None:
        text = json.dumps(model["graph_module"]).replace('"conv2d"', json.dumps(f"a = {call}; b"))
        model["graph_module"] = json.loads(text)

    def tree(model: dict[str, Any]) -> None:
        entry = {"type": "collections.defaultdict", "context": json.dumps({"default_factory_module": "this"})}
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = json.dumps([1, entry | {"children_spec": []}])

    edits = (expression, string_in_expression, operator, file_operator, name, tree)
    direct = (samples, weight, constant, old_weights, library)
    return {change.__name__: change for change in direct} | {edit.__name__: with_model(edit) for edit in edits}


@pytest.mark.parametrize("attack", attacks(Path("witness")))
def test_nothing_of_a_program_is_executed(program: Path, tmp_path: Path, attack: str) -> None:
    witness = tmp_path / "witness"
    file = rewritten(program, tmp_path / "net.pt2", attacks(witness)[attack])
    with pytest.raises(CheckpointError, match="nothing of it was executed"):
        sources.load_exported(file)
    assert not witness.exists()


@pytest.mark.parametrize("attack", ["samples", "weight", "constant", "old_weights", "expression"])
def test_torch_itself_would_have_executed_it(program: Path, tmp_path: Path, attack: str) -> None:
    witness = tmp_path / "witness"
    file = rewritten(program, tmp_path / "net.pt2", attacks(witness)[attack])
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(file)
    assert witness.exists()


def test_programs_that_torch_cannot_read(program: Path, tmp_path: Path) -> None:
    def cut(records: dict[str, bytes]) -> None:
        records["models/model.json"] = records["models/model.json"][:-10]

    def none(records: dict[str, bytes]) -> None:
        del records["models/model.json"]

    def newer(model: dict[str, Any]) -> None:
        model["schema_version"]["major"] = 999

    for change, says in (
        (cut, "damaged"),
        (none, "found none"),
        (with_model(newer), "cannot read this exported program"),
    ):
        with pytest.raises(CheckpointError, match=says):
            sources.load_exported(rewritten(program, tmp_path / "net.pt2", change))


def test_programs_of_other_inputs(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": torch.relu(a + b)}

    batch = torch.export.Dim("batch")
    x = torch.ones(2, 3)
    torch.export.save(torch.export.export(Sum(), (x, x), dynamic_shapes=({0: batch}, {0: batch})), tmp_path / "net.pt2")
    assert sources.preprocessing(str(tmp_path / "net.pt2")) == Preprocessing()
    assert torch.equal(sources.load_exported(tmp_path / "net.pt2")(x, -x)["sum"], torch.zeros(2, 3))


def test_a_copy_without_a_change_is_read(program: Path, tmp_path: Path) -> None:
    assert sources.load_exported(rewritten(program, tmp_path / "net.pt2", lambda records: None))


# --- images -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of one color each, in two folders and two formats, none square."""
    image = pytest.importorskip("PIL.Image")
    for index in range(6):
        folder = tmp_path / "pictures" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        color = (40 * index, 0, 255)
        image.new("RGB", (20, 10 + index), color).save(folder / f"{index}.{'png' if index < 3 else 'jpg'}")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_a_folder_of_pictures(pictures: Path) -> None:
    wanted = Preprocessing((3, 8, 8), Normalization((0.0,), (1.0,)), 0.875)
    x, made = sources.images(str(pictures), wanted)
    assert x.shape == (6, 3, 8, 8) and x.dtype == torch.float32
    assert made == Preprocessing((3, 8, 8), Normalization((0.0,) * 3, (1.0,) * 3), 0.875)
    assert (x[:, 2] > 0.98).all() and sorted(round(255 * float(v) / 40) for v in x[:, 0, 4, 4]) == list(range(6))
    assert len(sources.images(str(pictures), wanted, 4)[0]) == 4
    grey, _ = sources.images(str(pictures), Preprocessing((1, 8, 8), Normalization((0.5,), (0.5,))))
    assert grey.shape == (6, 1, 8, 8)


def test_pictures_are_scaled_and_cut_in_the_middle(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 255  # the middle half is white
    (tmp_path / "one").mkdir()
    image.fromarray(pixels).save(tmp_path / "one" / "x.png")
    plain = Normalization((0.0,), (1.0,))
    x, _ = sources.images(str(tmp_path / "one"), Preprocessing((3, 8, 8), plain))
    assert (x == 1).all()
    x, _ = sources.images(str(tmp_path / "one"), Preprocessing((3, 8, 16), plain, 0.5))
    assert torch.equal(x[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)  # of that shape already: left alone


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_a_file_of_tensors(tmp_path: Path, ending: str) -> None:
    def write(x: torch.Tensor) -> str:
        path = tmp_path / f"x.{ending}"
        np.save(path, x.numpy()) if ending == "npy" else save_file({"images": x}, path)
        return str(path)

    x = torch.randn(10, 2, 4, 4)
    held, made = sources.images(write(x), Preprocessing(), 5)
    assert torch.equal(held, x[::2]) and made == Preprocessing((2, 4, 4))
    half = Normalization((0.5,), (0.5,))
    held, made = sources.images(write(x.sigmoid()), Preprocessing(), floats=half)
    assert torch.allclose(held, 2 * x.sigmoid() - 1, atol=1e-6) and made.normalization == for_channels(half, 2)
    for shape, floats, says in (((2, 8, 8), None, "floats are not resized"), ((2, 4, 4), half, "for values in 0..1")):
        with pytest.raises(DataError, match=says):
            sources.images(write(x), Preprocessing(shape), floats=floats)
    held, _ = sources.images(write(torch.full((3, 2, 4, 4), 255, dtype=torch.uint8)), Preprocessing((2, 8, 8), half))
    assert held.shape == (3, 2, 8, 8) and (held == 1).all()
    with pytest.raises(DataError, match="NaN"):
        sources.images(write(x / 0), Preprocessing())
    with pytest.raises(DataError, match=r"expected images \(N, C, H, W\), floats or uint8, got torch.float32 of shape"):
        sources.images(write(x[0]), Preprocessing())


def test_a_dataset() -> None:
    digits = data.load("digits")
    x, made = sources.images("digits", Preprocessing(), 20)
    assert x.shape == (20, 1, 8, 8) and made == Preprocessing((1, 8, 8), digits.normalization)
    x, made = sources.images("digits", Preprocessing((3, 16, 16), IMAGENET), 20)
    assert x.shape == (20, 3, 16, 16) and made.normalization == IMAGENET


def test_images_that_cannot_be_had(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    np.save(tmp_path / "objects.npy", np.array([Touch(tmp_path / "witness")]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    shape = Preprocessing((3, 8, 8), IMAGENET)
    for source, wanted, says in (
        ("digit", shape, "no folder, no file, and no dataset; datasets: .*; did you mean 'digits'"),
        (str(tmp_path / "empty"), shape, "expected pictures .* found none"),
        (
            str(tmp_path / "text.txt"),
            shape,
            "expected a folder of pictures, a .tar shard, or a .npy or .safetensors file",
        ),
        (str(tmp_path / "missing.npy"), shape, "found nothing"),
        (str(tmp_path / "objects.npy"), shape, "without executing it"),
        (str(tmp_path / "cut.npy"), shape, "not a file of one tensor"),
        (str(tmp_path / "cut.safetensors"), shape, "not a file of one tensor"),
        (str(tmp_path / "two.safetensors"), shape, "expected one tensor of images, got 2: a, b"),
        (str(pictures), Preprocessing(normalization=IMAGENET), "give --shape 3,224,224"),
        (str(pictures), Preprocessing((3, 8, 8)), "give --normalize imagenet"),
        (str(pictures), Preprocessing((5, 8, 8), IMAGENET), "pictures have 1 or 3 channels"),
    ):
        with pytest.raises(DataError, match=says):
            sources.images(source, wanted)
    assert not (tmp_path / "witness").exists()
    with pytest.raises(DataError, match="at least 1"):
        sources.images("digits", shape, 0)
    with pytest.raises(SpecError, match="expected 1 channels like the images, got 3"):
        sources.images("digits", Preprocessing((1, 8, 8), IMAGENET))
    next(pictures.rglob("0.png")).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png: expected a picture"):
        sources.images(str(pictures), shape)


def test_pictures_need_pillow(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "PIL")
    with pytest.raises(MissingExtraError, match="'pillow'"):
        sources.images(str(pictures), Preprocessing((3, 8, 8), IMAGENET))


def test_what_the_options_say() -> None:
    assert parse_shape("3,224,224") == parse_shape("3x224x224") == (3, 224, 224)
    assert parse_normalization("imagenet") == IMAGENET
    assert parse_normalization("0.1,0.2;1,2") == Normalization((0.1, 0.2), (1.0, 2.0))
    assert for_channels(parse_normalization("none"), 2) == Normalization((0.0, 0.0), (1.0, 1.0))
    for refused in (lambda: parse_shape("224,224"), lambda: parse_normalization("0.5"), lambda: parse_normalization("1;0"),
                    lambda: Preprocessing((3, 0, 8)), lambda: Preprocessing(crop=0.0)):  # fmt: skip
        with pytest.raises(SpecError, match="expected"):
            refused()


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look as if it were not installed."""
    original = builtins.__import__

    def importing(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", importing)
