"""One file holds a network; another kind of file, a damaged one or another model's is refused; a write is all or nothing."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import polarspike as ps
from polarspike import checkpoint
from polarspike.errors import CheckpointError, SpecError

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(6))


class Net(nn.Module):
    def __init__(self, width: int = 4, spare: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.three = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.three.weight = self.two.weight  # tied
        self.leaky, self.head = nn.LeakyReLU(0.1), nn.Linear(width, 5)
        self.spare = nn.Linear(7, 7) if spare else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(nn.functional.max_pool2d(self.leaky(self.three(self.two(x)) + x), 2).mean([2, 3]))


SPECS = {
    "tensor": ps.QuantSpec(negative=2, positive=6),
    "channel": ps.QuantSpec(negative=2, positive=6, granularity="channel", init="mse"),
    "learned": ps.QuantSpec(negative=2, positive=6, gain="learned", signed="all"),
    "overrides": ps.QuantSpec(overrides={"leaky": ps.QuantSpec(negative=1, positive=1)}),
}


def made(model: nn.Module | None = None, spec: ps.QuantSpec = SPECS["tensor"]) -> ps.QuantizedNetwork:
    qann = ps.quantize(model or Net(), spec, example=X)
    ps.calibrate(qann, [X])
    with torch.no_grad():  # as after training: nothing is where it started
        for site in qann.sites().values():
            site.offset.sub_(0.1 * site.start)
            if site.raw_gain is not None:
                site.raw_gain.sub_(0.07)
    return qann.eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ps.save(made(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def same(left: nn.Module, right: nn.Module, x: Tensor = X) -> bool:
    with torch.no_grad():
        return torch.equal(left(x), right(x))


# --- there and back ------------------------------------------------------------------------------------------------------


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


# --- writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("No space left on device"), SafetensorError("No space left on device")])
def test_a_failed_write_leaves_the_old_file_whole(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def half(tensors: dict[str, Tensor], partial: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, partial, metadata)
        partial.write_bytes(partial.read_bytes()[:1000])
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(
        CheckpointError, match=r"net.safetensors: cannot be written: No space left on device; choose a folder"
    ):
        ps.save(made(Net(6)), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_kill_during_the_write_leaves_the_old_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def killed(tensors: dict[str, Tensor], partial: Path, metadata: dict[str, str]) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        ps.save(made(Net(6)), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_places_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qann = made()
    for place in (path.parent / "missing" / "net.safetensors", path / "net.safetensors", path.parent):
        with pytest.raises(CheckpointError, match=r"cannot be written: .* choose a folder that exists and is writable"):
            ps.save(qann, place)

    def refused(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*Permission denied"):
        ps.save(qann, path)


def test_only_our_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a quantized, spiking or temporal network, got Net"):
        ps.save(Net(), tmp_path / "net.safetensors")  # type: ignore[arg-type]


def test_what_could_not_be_loaded_again_is_not_written(tmp_path: Path) -> None:
    class Masked(nn.Conv2d):
        """Computes what its base does, and holds a buffer that its base does not know."""

        def __init__(self) -> None:
            super().__init__(3, 4, 3)
            self.register_buffer("mask", torch.ones(1))

    qann = ps.quantize(nn.Sequential(Masked(), nn.ReLU()), ps.QuantSpec(), example=X)
    with pytest.raises(CheckpointError, match=r'Unexpected key\(s\) in state_dict: "0.mask"'):
        ps.save(qann, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


# --- files that are none -------------------------------------------------------------------------------------------------


def test_missing_folder_text_and_empty_file(tmp_path: Path) -> None:
    text, empty = tmp_path / "notes.txt", tmp_path / "empty"
    text.write_text("these are not the tensors that you are looking for\n" * 20)
    empty.write_bytes(b"")
    for place, message in (
        (tmp_path / "nothing", "expected a file, found nothing"),
        (tmp_path, "expected a file, found a folder"),
        (text, "not a complete safetensors file .* it is another kind of file, or was truncated"),
        (empty, "not a complete safetensors file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ps.load(place)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "PWNED",))

    torch.save({"weight": Bomb()}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        ps.load(tmp_path / "net.pt")
    assert not (tmp_path / "PWNED").exists()


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1}
    cuts |= {random.Random(0).randrange(len(whole)) for _ in range(1)} | set(
        random.Random(1).sample(range(len(whole)), 60)
    )
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            CheckpointError, match=r"net.safetensors: not a complete safetensors file .* write it again"
        ):
            ps.load(path)


def test_flipped_bytes_of_the_header_never_raise_anything_else(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(2)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(header)] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            ps.load(path)
        except CheckpointError:
            refused += 1
    assert refused > 100


def test_a_file_with_bytes_behind_its_end_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        ps.load(path)


def test_tensors_of_another_program(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"a safetensors file, but not of polarspike: .* call polarspike.quantize"
    ):
        ps.load(tmp_path / "other.safetensors")


def rewritten(path: Path, change: Any, text: str | None = None) -> None:
    """The same file with another header, or other tensors."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["polarspike"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if change is not None:
        change(header, tensors)
    save_file(tensors, path, metadata={"polarspike": json.dumps(header) if text is None else text})


def test_another_format_names_the_version_that_wrote_it(path: Path) -> None:
    rewritten(path, lambda header, tensors: header.update(format=99, versions={"polarspike": "9.9"}))
    with pytest.raises(CheckpointError, match=r"expected format 2, got 99, written by .*9\.9.*; install that release"):
        ps.load(path)
    rewritten(path, lambda header, tensors: header.update(format=None, versions=3))
    with pytest.raises(CheckpointError, match="expected format 2, got None"):
        ps.load(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "[" * 200_000, '{"format": 1}', "\ufffd"])
def test_a_header_that_is_no_description(text: str, path: Path) -> None:
    rewritten(path, None, text)
    with pytest.raises(CheckpointError, match=r"net.safetensors: (damaged|expected format)"):
        ps.load(path)


DAMAGE: dict[str, Any] = {
    "a tensor is gone": lambda h, t: t.pop("conv.weight"),
    "a step is gone": lambda h, t: t.pop("relu.start"),
    "a tensor too many": lambda h, t: t.update(extra=torch.zeros(1)),
    "another shape": lambda h, t: t.update({"head.bias": torch.zeros(7)}),
    "another type": lambda h, t: t.update({"conv.weight": t["conv.weight"].long()}),
    "another kind": lambda h, t: h.update(kind="spiking"),
    "an unknown kind": lambda h, t: h.update(kind="pickled"),
    "a spec of another type": lambda h, t: h["spec"].update(type="TrainSpec"),
    "a spec of another version": lambda h, t: h["spec"].update(version=2),
    "a spec with another field": lambda h, t: h["spec"].update(code="1"),
    "a spec out of range": lambda h, t: h["spec"].update(positive=-1),
    "a spec of wrong type": lambda h, t: h["spec"].update(gain=[1]),
    "overrides of wrong type": lambda h, t: h["spec"].update(overrides=[1]),
    "no graph": lambda h, t: h.pop("graph"),
    "a graph that is none": lambda h, t: h.update(graph="x"),
    "no notes": lambda h, t: h.pop("notes"),
    "notes that are none": lambda h, t: h.update(notes=3),
    "no signature": lambda h, t: h.pop("signature"),
    "a signature that is none": lambda h, t: h.update(signature=[1]),
    "a layout of nothing": lambda h, t: h.update(channels_last=["nothing"]),
    "a layout of a vector": lambda h, t: h.update(channels_last=["head.bias"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_header_or_state_is_refused(name: str, path: Path) -> None:
    rewritten(path, DAMAGE[name])
    with pytest.raises(CheckpointError, match=r"net.safetensors: "):
        ps.load(path)


def test_code_in_a_file_does_not_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('PWNED').touch()"
    whole = path.read_bytes()
    for change in (
        lambda h, t: h["graph"]["nodes"][1].update(name=code),
        lambda h, t: h["graph"]["nodes"][0].update(target=code),
        lambda h, t: h["graph"]["nodes"][1].update(target=code),
        lambda h, t: h["graph"]["nodes"][1].update(kwargs={code: 1}),
        lambda h, t: h["graph"]["modules"]["conv"].update(type=code),
        lambda h, t: h["graph"]["modules"]["conv"]["arguments"].update({code: 1}),
    ):
        path.write_bytes(whole)
        rewritten(path, change)
        with pytest.raises(CheckpointError):
            ps.load(path)
    assert not (tmp_path / "PWNED").exists()


# --- another model -------------------------------------------------------------------------------------------------------


def test_the_model_that_it_came_from_is_accepted(tmp_path: Path) -> None:
    for model in (Net(), Net(spare=True)):  # a part that takes no part in forward is not in the file
        for network in (made(model), ps.convert(made(model))):
            ps.save(network, tmp_path / "net.safetensors")
            assert same(ps.load(tmp_path / "net.safetensors", model), network)
    wrapped = Net()
    nn.utils.parametrizations.weight_norm(wrapped.conv)
    ps.save(made(wrapped), tmp_path / "net.safetensors")
    ps.load(tmp_path / "net.safetensors", wrapped)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(6), r"Net has 'conv.weight' of shape \(6, 3, 3, 3\), the file has it of shape \(4, 3, 3, 3\)"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), r"Sequential has '0.weight' of shape .* of shape None"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()),
            r"another model than this Sequential: .* itself fails on the example",
        ),
    ],
    ids=["width", "names", "input"],
)
def test_a_file_of_another_model_is_refused(model: nn.Module, message: str, path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        ps.load(path, model)


def test_a_file_of_a_part_of_the_model_is_refused(tmp_path: Path) -> None:
    def deep(blocks: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(blocks)))

    ps.save(made(deep(2)), tmp_path / "net.safetensors")
    ps.load(tmp_path / "net.safetensors", deep(2))
    for blocks in (1, 3):
        with pytest.raises(CheckpointError, match="belongs to another model"):
            ps.load(tmp_path / "net.safetensors", deep(blocks))
