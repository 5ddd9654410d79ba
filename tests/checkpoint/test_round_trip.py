"""A network comes back from its one file as it was saved, with its notes, and goes on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export

import polarspike as ps
from polarspike import checkpoint
from polarspike.cli.export import random_inputs
from polarspike.errors import CheckpointError, SpecError
from tests.checkpoint.saved import SPECS, Net, X, made, same


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels_last"])
def test_outputs_types_and_layouts_survive(
    spec: ps.QuantSpec, dtype: torch.dtype, layout: torch.memory_format, tmp_path: Path
) -> None:
    qann = made(Net(8), spec).to(dtype)
    qann.to(memory_format=layout)  # type: ignore[call-overload]
    x = X.to(dtype)
    snn = ps.convert(qann)
    for network in (qann, snn):
        ps.save(network, tmp_path / "net.safetensors")
        again = ps.load(tmp_path / "net.safetensors")
        assert type(again) is type(network) and not again.training
        assert again.spec == network.spec and again.signature == network.signature
        mine, theirs = network.state_dict(), again.state_dict()
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype
            assert value.stride() == theirs[name].stride(), name
        assert same(again, network, x) and same(again, network, x.contiguous(memory_format=torch.channels_last))
        for name, site in network.sites().items():
            assert again.sites()[name].spec == site.spec and again.sites()[name].calibrated
            assert torch.equal(again.sites()[name].step, site.step)
    again = ps.load(tmp_path / "net.safetensors")
    assert isinstance(again, ps.SpikingNetwork) and again.report == snn.report
    with torch.no_grad():
        assert torch.equal(again(x, timesteps=4, every_step=True), snn(x, timesteps=4, every_step=True))


def test_a_loaded_network_goes_on(path: Path) -> None:
    qann = ps.load(path)
    assert isinstance(qann, ps.QuantizedNetwork)
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [X], scope=False).exact
    ps.refine(qann, 2)
    qann.train()(X).sum().backward()
    assert all(value.grad is not None for value in qann.parameters())
    ps.calibrate(qann, [X])
    ps.save(qann, path)
    assert same(ps.load(path), qann.eval())


def test_a_network_without_steps_is_saved_as_such(tmp_path: Path) -> None:
    ps.save(ps.quantize(Net(), SPECS["tensor"], example=X), tmp_path / "net.safetensors")
    with pytest.raises(ps.PolarspikeError, match="site 'relu' has no step yet"):
        ps.load(tmp_path / "net.safetensors")(X)


def test_notes_go_with_the_network_and_its_conversion(tmp_path: Path) -> None:
    notes = {
        "classes": ["cat", "dog"],
        "normalization": {"mean": [0.5], "std": [0.25]},
        "quote": "\"'\\\n\u00e9",
        "n": None,
    }
    qann = made()
    qann.notes.update(notes)
    for network in (qann, ps.convert(qann)):
        ps.save(network, tmp_path / "net.safetensors")
        assert ps.load(tmp_path / "net.safetensors").notes == notes


@pytest.mark.parametrize("notes", [{"a": {1, 2}}, {"a": torch.zeros(1)}, {"a": {0: "cat"}}, {1: "a"}, {"a": [{2: 3}]}])
def test_notes_that_would_come_back_otherwise_are_refused(notes: Any, tmp_path: Path) -> None:
    qann = made()
    qann.notes = notes
    with pytest.raises(SpecError, match=r"expected notes of plain data .JSON., got"):
        ps.save(qann, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_numbers(path: Path) -> None:
    state = torch.get_rng_state()
    ps.load(path)
    assert torch.equal(state, torch.get_rng_state())


def test_the_header_names_the_versions(path: Path) -> None:
    header, tensors = checkpoint.read(path)
    assert header["versions"] == {"polarspike": ps.__version__, "torch": torch.__version__}
    assert header["kind"] == "quantized" and "conv.weight" in tensors


def test_the_model_that_it_came_from_is_accepted(tmp_path: Path) -> None:
    for model in (Net(), Net(spare=True)):  # a part that takes no part in forward is not in the file
        for network in (made(model), ps.convert(made(model))):
            ps.save(network, tmp_path / "net.safetensors")
            assert same(ps.load(tmp_path / "net.safetensors", model), network)
    wrapped = Net()
    nn.utils.parametrizations.weight_norm(wrapped.conv)
    ps.save(made(wrapped), tmp_path / "net.safetensors")
    ps.load(tmp_path / "net.safetensors", wrapped)


def test_the_program_that_it_came_from_is_accepted(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(4, 6)
    program = export(model, (x,), dynamic_shapes=({0: Dim("batch")},))
    network = ps.quantize(program, SPECS["tensor"], example=x)
    ps.calibrate(network, [x])
    ps.save(network, tmp_path / "net.safetensors")
    for given in (program, program.module()):
        assert same(ps.load(tmp_path / "net.safetensors", given), network.eval(), x)
    with pytest.raises(
        CheckpointError, match=r"load: input 'input' has the fixed shape .* export it again with dynamic_shapes"
    ):
        ps.load(tmp_path / "net.safetensors", export(model, (x,)))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        ps.load(tmp_path / "net.safetensors", export(model[:1], (x,), dynamic_shapes=({0: Dim("batch")},)))


def test_a_model_of_integers_that_it_came_from_is_accepted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    tokens = torch.randint(7, (4, 5))
    qann = ps.quantize(model, ps.QuantSpec(0, 3), example=tokens)
    ps.calibrate(qann, [tokens])
    ps.save(qann, tmp_path / "net.safetensors")
    loaded = ps.load(tmp_path / "net.safetensors", model)
    assert torch.equal(loaded(tokens), qann.eval()(tokens))
    (made,) = random_inputs(ps.convert(qann))  # what an export without images is made with
    assert made.dtype == torch.int64 and made.shape[1:] == tokens.shape[1:]
    with pytest.raises(
        CheckpointError, match=r"expected the float model as an nn\.Module or an exported program, got str"
    ):
        ps.load(tmp_path / "net.safetensors", "net")  # type: ignore[arg-type]
