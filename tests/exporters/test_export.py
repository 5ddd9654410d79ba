"""Exported files: they answer like the network, say what is in it, take any batch, and are whole or not there."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import CheckpointError, ExportError, InputError, MissingExtraError, SpecError
from polarspike.exporters import FORMATS, onnx_float, report, runtime
from polarspike.exporters.first_timestep import FixedSite
from polarspike.neurons import PolarityNeuron
from polarspike.specs import SiteSpec
from tests.networks import calibrated, learned_like, network, signal

SPEC = ps.QuantSpec(2, 4, gain=0.3, signed="all")
NETWORKS = ["plain", "branched", "mlp", "leaky", "group", "squeeze", "attention"]


def converted(name: str = "branched") -> ps.SpikingNetwork:
    return ps.convert(learned_like(calibrated(network(name), SPEC, signal(name, 16))))


@pytest.mark.parametrize("spec", [(0, 3, 1.0), (2, 5, 1.0), (2, 5, 0.3), (1, 1, 0.0)], ids=str)
@pytest.mark.parametrize("channels", [0, 3])
def test_a_fixed_site_is_the_neuron_bit_for_bit(spec: Any, channels: int) -> None:
    negative, positive, gain = spec
    neuron = PolarityNeuron(SiteSpec(negative, positive, gain=gain, channels=channels), "site")
    neuron.set_step(torch.rand(3) + 0.05 if channels else 0.37)
    x = torch.randn(64, 3, 5)
    step = neuron.broadcast_step(x).detach()
    ties = (torch.arange(-7, 8) + 0.5).view(-1, 1, 1) * step  # where halves go up
    fixed = FixedSite(neuron, 3)
    for values in (x, ties.expand(15, 3, 1).contiguous(), torch.full((1, 3, 1), torch.inf)):
        assert torch.equal(fixed(values), neuron(values).detach())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_answers_bit_for_bit_at_any_batch_size(name: str, tmp_path: Path) -> None:
    snn = converted(name)
    batches = [signal(name, size, seed=size) for size in (1, 3, 17)]
    made = ps.export(snn, tmp_path / "net.pt2", "torch-export", signal(name, 1), batches)
    assert made.samples == 21 and made.compared > 0
    assert made.largest < 1e-5 and (made.exact or name == "attention"), made  # sums of products are in torch's hands
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt2"] and made.bytes == (
        (tmp_path / "net.pt2").stat().st_size
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_answers_the_same_but_for_rounding(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    snn = converted(name)
    batches = [signal(name, size, seed=size) for size in (1, 3, 17)]
    made = ps.export(snn, tmp_path / "net.onnx", "onnx-float", signal(name, 1), batches)
    assert made.samples == 21 and made.largest < 1e-4 * max(1.0, float(snn(batches[2]).detach().abs().max())), made


@pytest.mark.slow
def test_files_say_what_is_in_the_network(tmp_path: Path) -> None:
    snn = converted()
    snn.notes = {"classes": ["cat", "dog", "owl", "emu"]}
    ps.export(snn, tmp_path / "net.pt2", "torch-export", signal("branched"))
    held = {"polarspike.json": ""}
    torch.export.load(io.BytesIO((tmp_path / "net.pt2").read_bytes()), extra_files=held)
    found = json.loads(held["polarspike.json"])
    assert found["inputs"] == {"x": list(signal("branched").shape[1:])}
    assert found["format"] == 1 and found["timesteps"] == 1 and found["notes"] == snn.notes
    for name, neuron in snn.sites().items():
        site = found["sites"][name]
        assert tuple(site["levels"]) == neuron.levels and torch.equal(torch.tensor(site["step"]), neuron.step)
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    ps.export(snn, tmp_path / "net.onnx", "onnx-float", signal("branched"))
    model = onnx.load(tmp_path / "net.onnx")
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["polarspike"]) == found
    onnx.checker.check_model(model)


@pytest.mark.slow
def test_weights_beyond_one_file_are_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(runtime, "MOST_BYTES", 100)
    snn = converted()
    made = ps.export(snn, tmp_path / "net.onnx", "onnx-float", signal("branched"))
    (weights,) = runtime.weights_of(tmp_path / "net.onnx")
    assert {entry.name for entry in tmp_path.iterdir()} == {"net.onnx", weights.name}
    assert made.bytes == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    x = signal("branched", 5, seed=3)
    again = onnx_float.runner(tmp_path / "net.onnx")(x)[0]  # from its final place
    assert torch.allclose(again, snn(x).detach(), atol=1e-4)
    # A smaller file of the same name takes the weights of the larger one away; whole numbers are written likewise.
    monkeypatch.setattr(runtime, "MOST_BYTES", 10**9)
    ps.export(snn, tmp_path / "net.onnx", "onnx-float", signal("branched"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"net.onnx"}
    whole = ps.convert(calibrated(network("branched"), ps.QuantSpec(0, 3), signal("branched", 16)))
    monkeypatch.setattr(runtime, "MOST_BYTES", 100)
    made = ps.export(whole, tmp_path / "whole.onnx", "onnx-int8", signal("branched"))
    (weights,) = runtime.weights_of(tmp_path / "whole.onnx")
    assert made.codes_wrong == 0 and weights.stat().st_size > 100


def test_a_model_never_reads_the_weights_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtime, "MOST_BYTES", 100)
    path, x = tmp_path / "net.onnx", torch.randn(8, 12)
    one, other = (ps.convert(calibrated(network("mlp", seed=seed), ps.QuantSpec(0, 3), x)) for seed in (0, 1))
    ps.export(one, path, "onnx-int8", x)
    first = runtime.session(path).run(None, {"x": x.numpy()})[0]
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        if Path(target) == path:
            raise OSError("no power")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(ExportError, match="no power"):
        patch.setattr(os, "replace", interrupted)
        ps.export(other, path, "onnx-int8", x)  # whose weights are there now, and whose model is not
    assert np.array_equal(runtime.session(path).run(None, {"x": x.numpy()})[0], first)
    ps.export(other, path, "onnx-int8", x)
    assert not np.array_equal(runtime.session(path).run(None, {"x": x.numpy()})[0], first)
    (weights,) = runtime.weights_of(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"net.onnx", weights.name}
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match="the file is damaged"):
        runtime.session(path)


def test_every_class_has_a_name_or_none_has(tmp_path: Path) -> None:
    snn = converted("mlp")
    for names in (["a", "b"], ["a"] * 6):
        snn.notes = {"classes": names}
        with pytest.raises(ExportError, match=f"expected 5 names of classes, one for each output, got {len(names)}"):
            ps.export(snn, tmp_path / "net", "integer", signal("mlp"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            hidden = (self.left(a) + self.right(b)).relu()
            return self.head(hidden), hidden

    batch = {"b": torch.randn(4, 5), "a": torch.randn(4, 6)}
    qann = ps.quantize(Two(), SPEC, example=batch)
    ps.calibrate(qann, [batch])
    made = ps.export(ps.convert(qann), tmp_path / "net.pt2", "torch-export", batch)
    assert made.exact and made.compared == 4 * 3 + 4 * 8 and made.decisions is None
    pytest.importorskip("onnxscript")
    assert ps.export(ps.convert(qann), tmp_path / "net.onnx", "onnx-float", batch).largest < 1e-5


@pytest.mark.slow
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qann = calibrated(network("plain"), SPEC, signal("plain", 16))
    snn, x = ps.convert(qann), signal("plain")
    with pytest.raises(SpecError, match=r"expected what polarspike.convert returns, got QuantizedNetwork"):
        ps.export(qann, tmp_path / "net", "torch-export", x)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=f"unknown format 'tflite'; expected one of {', '.join(FORMATS)}"):
        ps.export(snn, tmp_path / "net", "tflite", x)  # type: ignore[arg-type]
    capped = ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=1))
    with pytest.raises(ExportError, match="has not answered after one step"):
        ps.export(capped, tmp_path / "net", "torch-export", x)
    with pytest.raises(ExportError, match=r"expected a float32 network, got torch.bfloat16"):
        ps.export(ps.convert(qann).bfloat16(), tmp_path / "net", "torch-export", x.bfloat16())
    half = ps.convert(calibrated(network("plain").half(), SPEC, signal("plain", 16).half()))
    for name in FORMATS:
        with pytest.raises(
            ExportError, match=rf"^{name}: expected a float32 network, got torch.float16 at 'conv1.weight'"
        ):
            ps.export(half, tmp_path / "net", name, x.half())
    with pytest.raises(ExportError, match=r"cannot be written \(there is no folder"):
        ps.export(snn, tmp_path / "nowhere" / "net", "torch-export", x)
    with pytest.raises(ExportError, match=r"cannot be written \(is a folder"):
        ps.export(snn, tmp_path, "torch-export", x)
    with pytest.raises(ExportError, match=r"onnx-float: expected a float32 network, got torch.float64"):
        ps.export(ps.convert(qann).double(), tmp_path / "net.onnx", "onnx-float", x.double())
    with pytest.raises(ExportError, match="no output value was compared"):
        ps.export(snn, tmp_path / "net", "torch-export", x, [])
    for module, extra in (("onnxscript", "deploy"), ("onnxruntime", "deploy")):
        with monkeypatch.context() as patch, pytest.raises(MissingExtraError, match=rf"polarspike\[{extra}\]"):
            patch.setitem(sys.modules, module, None)
            ps.export(snn, tmp_path / "net.onnx", "onnx-float", x)
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_left_behind(tmp_path: Path) -> None:
    good = lambda inputs: [inputs.clone()]  # noqa: E731
    with pytest.raises(ExportError, match=r"expected outputs of shapes \[\(2, 3\)\], got \[\(2, 2\)\]"):
        report.compare(tmp_path, "x", 0, [torch.ones(2, 3)], good, lambda inputs: [inputs[:, :2]])
    with pytest.raises(ExportError, match="answers NaN"):
        report.compare(tmp_path, "x", 0, [torch.ones(2, 3)], good, lambda inputs: [inputs * torch.nan])
    found = report.compare(tmp_path, "x", 0, [torch.eye(3)], good, lambda inputs: [inputs.flip(1)])
    assert (found.different, found.decisions, found.largest) == (4, 2, 1.0)


def test_an_output_without_dimensions(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu()).sum()

    x = torch.randn(5, 4)
    qann = ps.quantize(Sum(), SPEC, example=x)
    ps.calibrate(qann, [x])
    made = ps.export(ps.convert(qann), tmp_path / "net.pt2", "torch-export", x)
    assert made.samples == 5 and made.compared == 1 and made.decisions is None and made.exact


def test_holding_neurons_and_float64_are_written_too(tmp_path: Path) -> None:
    qann = calibrated(network("plain"), SPEC, signal("plain", 16)).double()
    snn = ps.convert(qann, ps.ConvertSpec(neuron="holding"))
    assert ps.export(snn, tmp_path / "net.pt2", "torch-export", signal("plain").double()).exact


@pytest.mark.parametrize("format", FORMATS)
def test_nan_is_no_comparison(tmp_path: Path, format: Any) -> None:
    pytest.importorskip({"nir": "nir", "onnx-float": "onnx", "onnx-int8": "onnx"}.get(format, "torch"))
    snn = ps.convert(calibrated(network("plain"), ps.QuantSpec(0, 3), signal("plain", 8)))
    bad = signal("plain", 8)
    bad[3] = torch.nan
    with pytest.raises(InputError, match=r"export, batch 1, input .*: expected finite values"):
        ps.export(snn, tmp_path / "a", format, signal("plain", 8), [signal("plain", 8), bad])
    with pytest.raises(InputError, match=r"export, example, input .*: expected finite values"):
        ps.export(snn, tmp_path / "a", format, bad)
    assert not list(tmp_path.iterdir())


def test_small_batches_show_as_much_as_large_ones(tmp_path: Path) -> None:
    """Twenty quiet samples come first; in batches of one they would be all that ranges are taken from."""
    snn = ps.convert(calibrated(network("plain"), ps.QuantSpec(0, 3), signal("plain", 64)))
    samples = torch.cat([0.01 * signal("plain", 20), signal("plain", 100)])
    one, many = (
        ps.export(snn, tmp_path / name, "integer", samples[:2], list(samples.split(size))).decisions
        for name, size in (("a", 1), ("b", 60))
    )
    assert one == many


def test_an_exported_network_is_named_where_another_is_loaded(tmp_path: Path) -> None:
    snn = ps.convert(calibrated(network("plain"), ps.QuantSpec(0, 3), signal("plain", 8)))
    ps.export(snn, tmp_path / "a.integer", "integer", signal("plain", 2))
    with pytest.raises(CheckpointError, match=r"got an exported one; polarspike run and polarspike\.integer\.load"):
        ps.load(tmp_path / "a.integer")
