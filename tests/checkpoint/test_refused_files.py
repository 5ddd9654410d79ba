"""A damaged file, one of another kind or another model's is refused, and no code in it runs."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import CheckpointError
from tests.checkpoint.saved import SPECS, Net, X, made, same

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


def test_any_changed_bit_of_a_weight_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(3)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(header, len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match=r"net.safetensors: damaged: expected the SHA-256 .* write it again"):
            ps.load(path)


def test_a_changed_word_of_the_description_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    assert whole.count(b'\\"positive\\": 6') > 0  # in quotes of quotes: JSON within the JSON of safetensors
    path.write_bytes(whole.replace(b'\\"positive\\": 6', b'\\"positive\\": 5', 1))
    with pytest.raises(CheckpointError, match="damaged: expected the SHA-256"):
        ps.load(path)


def test_a_digest_whose_own_name_was_damaged_still_counts(path: Path) -> None:
    whole = path.read_bytes()
    for name in (b"rha256", b"sha25v"):
        path.write_bytes(whole.replace(b'\\"sha256\\"', b'\\"' + name + b'\\"', 1))
        with pytest.raises(CheckpointError, match="damaged: expected the SHA-256"):
            ps.load(path)


def test_a_file_of_an_earlier_release_without_a_digest_is_read(path: Path) -> None:
    wanted = ps.load(path)
    rewritten(path, lambda header, tensors: header.pop("sha256"))
    assert b"sha256" not in path.read_bytes() and same(ps.load(path), wanted)


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


def test_a_file_with_folded_norms_is_its_model_s(tmp_path: Path) -> None:
    class Normed(nn.Module):
        """Norms behind a convolution and behind vectors, which are folded, and behind a ReLU, which is not."""

        def __init__(self, affine: bool, hidden: bool = True) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=affine), nn.BatchNorm2d(4, affine=affine)
            self.late = nn.BatchNorm2d(4)
            self.fc, self.flat, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6, affine=affine), nn.Linear(6, 5)
            self.hidden = hidden

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.late(torch.relu(self.norm(x) if self.hidden else x))
            return self.head(torch.relu(self.flat(self.fc(x.mean([2, 3])))))

    file = tmp_path / "net.safetensors"
    for affine in (True, False):
        model = Normed(affine).eval()
        qann = ps.fold_batch_norm(ps.quantize(model, SPECS["tensor"], example=X))
        ps.calibrate(qann, [X])
        for network in (qann, ps.convert(qann)):
            ps.save(network, file)
            assert same(ps.load(file, model), network)
        ps.save(made(model), file)
        with pytest.raises(CheckpointError, match=r"belongs to another model: .*'norm\."):
            ps.load(file, Normed(affine, hidden=False))  # also a norm that learned nothing but its statistics


def test_a_file_of_a_part_of_the_model_is_refused(tmp_path: Path) -> None:
    def deep(blocks: int) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(blocks)))

    ps.save(made(deep(2)), tmp_path / "net.safetensors")
    ps.load(tmp_path / "net.safetensors", deep(2))
    for blocks in (1, 3):
        with pytest.raises(CheckpointError, match="belongs to another model"):
            ps.load(tmp_path / "net.safetensors", deep(blocks))
