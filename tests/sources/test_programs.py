"""Exported programs as networks: read without executing a file."""

import contextlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polarspike import sources
from polarspike.errors import CheckpointError, SpecError
from polarspike.sources import Preprocessing
from tests.foreign import Net, Touch


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
