"""Networks that somebody else trained, shipped inside a package: what does the conversion without training cost them?

Random weights prove little, and a network trained here was trained by us. These two come from the package lists, under
permissive licenses, with weights that are read as plain numbers (no code of the package and no pickled code is run):

    facenet-pytorch (MIT)   MTCNN's R-Net and O-Net, face or no face; PReLU with trained slopes, many of them negative;
                            judged on the 100 faces and 100 non-faces of scikit-image (BSD), clean and with noise
    magika (Apache-2.0)     type of a file from its bytes, 214 classes; embedding, GELU, layer norm, convolution;
                            judged on the files of the running Python installation, by their extension

Nothing is fetched. Get the wheels first:

    pip download --no-deps facenet-pytorch==2.6.0 scikit-image==0.26.0 magika==1.0.3
    python benchmarks/shipped_network.py facenet_pytorch-*.whl scikit_image-*.whl magika-*.whl

Each network is converted at T = 1 with 16, 8 and 3 levels, one step per site and one per channel: ``quantize``,
``calibrate`` on inputs that are not judged, without their labels, ``convert``, ``verify``. Leave a wheel out, and its
network is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import conditions, keep
from torch import Tensor, nn

import polarspike as ps
from polarspike.evaluation import FiringCounter
from polarspike.specs import Granularity

SEED = 0
BATCH = 64
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel")
LEVELS = {16: (7, 8), 8: (3, 4), 3: (1, 1)}  # codes -> (negative, positive)
NOISE = 0.1  # standard deviation of the noise on the faces, where black to white is 2
DOWNLOAD = "pip download --no-deps facenet-pytorch==2.6.0 scikit-image==0.26.0 magika==1.0.3"

# What is read out of each wheel, by SHA-256: the same numbers whatever platform the wheel is for.
MAGIKA = "magika/models/standard_v3_3"
MEMBERS = {
    "facenet_pytorch/data/rnet.pt": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "facenet_pytorch/data/onet.pt": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    "skimage/data/lfw_subset.npy": "9560ec2f5edfac01973f63a8a99d00053fecd11e21877e18038fbe500f8e872c",
    f"{MAGIKA}/model.onnx": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    f"{MAGIKA}/config.min.json": "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
}

# Extensions that say what a file is, and the label that magika has for it.
EXTENSIONS = {
    "py": "python", "c": "c", "cpp": "cpp", "js": "javascript", "json": "json",
    "html": "html", "css": "css", "csv": "csv", "md": "markdown", "rst": "rst", "yaml": "yaml", "xml": "xml",
    "svg": "svg", "png": "png", "jpg": "jpeg", "gif": "gif", "npy": "npy", "npz": "npz", "so": "elf", "ttf": "ttf",
    "pdf": "pdf", "cmake": "cmake", "gz": "gzip", "zip": "zip", "pem": "pem",
}  # fmt: skip
FILES_PER_LABEL = 40


def member(wheels: list[Path], name: str) -> bytes | None:
    """One file out of the wheels, if its digest is the expected one; None if no wheel has it."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            if name in archive.namelist():
                content = archive.read(name)
                found = hashlib.sha256(content).hexdigest()
                if found != MEMBERS[name]:
                    sys.exit(f"{wheel}: expected {name} with SHA-256 {MEMBERS[name]}, got {found}; fetch: {DOWNLOAD}")
                return content
    return None


class Stage(nn.Module):
    """A stage of MTCNN: convolutions with PReLU and max pooling, a dense layer, and one linear head per answer."""

    def __init__(self, state: dict[str, Tensor], pools: tuple[int, ...]) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for index, window in enumerate(pools, start=1):
            count, channels, size, _ = state[f"conv{index}.weight"].shape
            body += [nn.Conv2d(channels, count, size), nn.PReLU(count)]
            body += [nn.MaxPool2d(window, 2, ceil_mode=True)] if window else []
        dense = state[f"dense{len(pools) + 1}.weight"]
        body += [nn.Flatten(), nn.Linear(dense.shape[1], dense.shape[0]), nn.PReLU(dense.shape[0])]
        self.body = nn.Sequential(*body)
        heads = sorted({key.split(".")[0] for key in state if key.startswith(f"dense{len(pools) + 2}_")})
        self.heads = nn.ModuleList(nn.Linear(dense.shape[0], state[f"{head}.weight"].shape[0]) for head in heads)
        # The trained dense layer reads (width, height, channels), ours (channels, height, width).
        side = round((dense.shape[1] // count) ** 0.5)
        turned = dense.reshape(-1, side, side, count).permute(0, 3, 2, 1).reshape(dense.shape)
        weights = {**state, f"dense{len(pools) + 1}.weight": turned}
        self.load_state_dict(dict(zip(self.state_dict(), weights.values(), strict=True)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits (no face, face), the box, and for O-Net the landmarks, of images (N, 3, side, side)."""
        features = self.body(images)
        return tuple(head(features) for head in self.heads)


class FileType(nn.Module):
    """Magika: bytes (N, 2048), 256 for none, to the logits (N, 214) of the types."""

    def __init__(self, table: dict[str, Tensor]) -> None:
        super().__init__()
        get = {key.removeprefix("jax2tf_get_logits_/pjit_get_logits_/MagikaV2/"): value for key, value in table.items()}
        self.embedding = nn.Embedding.from_pretrained(get["jax2tf_get_logits_/Const:0"] + get["Dense_0/Reshape:0"][0])
        self.first_norm, self.last_norm = nn.LayerNorm(512, eps=1e-6), nn.LayerNorm(512, eps=1e-6)
        self.convolution, self.classifier = nn.Conv1d(256, 512, 5), nn.Linear(512, 214)
        self.activation = nn.GELU(approximate="tanh")
        for parameter, value in (
            (self.first_norm.weight, get["LayerNorm_0/Reshape_2:0"]),
            (self.first_norm.bias, get["LayerNorm_0/Reshape_3:0"]),
            (self.convolution.weight, get["Conv_0/transpose_3:0"]),
            (self.convolution.bias, get["const_fold_opt__209"]),
            (self.last_norm.weight, get["LayerNorm_1/Reshape_2:0"]),
            (self.last_norm.bias, get["LayerNorm_1/Reshape_3:0"]),
            (self.classifier.weight, get["jax2tf_get_logits_/Const_24:0"].T),
            (self.classifier.bias, get["Dense_1/Reshape:0"]),
        ):
            assert parameter is not None  # all of these layers have a bias
            parameter.data = value.reshape(parameter.shape).clone()

    def forward(self, codes: Tensor) -> Tensor:
        """Four bytes make one position: (N, 2048, 64) is read as (N, 512, 256)."""
        x = self.activation(self.embedding(codes)).reshape(-1, 512, 256).transpose(1, 2)  # (N, 256, 512)
        x = self.activation(self.convolution(self.first_norm(x)))  # (N, 512, 508)
        logits: Tensor = self.classifier(self.last_norm(x.amax(dim=2)))
        return logits


def integer(message: bytes, at: int) -> tuple[int, int]:
    """The variable-length integer that begins at ``at``, and where it ends."""
    value = shift = 0
    while message[at] >= 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of one protocol-buffer message: number and value (an integer, or bytes)."""
    at = 0
    while at < len(message):
        key, at = integer(message, at)
        if key & 7 == 0:
            value, at = integer(message, at)
            yield key >> 3, value
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or integer(message, at)
            yield key >> 3, message[at : at + size]
            at += size


def constants(model: bytes) -> dict[str, Tensor]:
    """The float32 constants of an ONNX file by name.

    By the numbers of onnx.proto: ModelProto.graph is 7, GraphProto.initializer 5, and of a TensorProto dims 1 (here one
    field for each), data_type 2 (float32 is 1), name 8, raw_data 9.
    """
    found = {}
    for graph in (value for number, value in fields(model) if number == 7):
        for tensor in (list(fields(value)) for number, value in fields(graph) if number == 5):
            content = dict(tensor)
            if content[2] == 1 and 9 in content:
                shape = [value for number, value in tensor if number == 1]
                found[content[8].decode()] = torch.frombuffer(bytearray(content[9]), dtype=torch.float32).reshape(shape)
    return found


@dataclass(frozen=True)
class Task:
    """A trained network, inputs to calibrate on (no labels), and labeled inputs to judge by: name -> (inputs, labels).

    ``entry`` names the site that holds the network's input as it comes (an embedding that is looked up, not computed):
    it is tried with 8-bit codes also, as the bytes themselves are. Pixels are left analog.
    """

    network: nn.Module
    calibration: Tensor
    tests: dict[str, tuple[Tensor, Tensor]]
    entry: str | None = None


def faces(wheels: list[Path]) -> dict[str, Task]:
    """R-Net and O-Net on pictures of 25x25: every fourth calibrates, the others are judged, clean and with noise."""
    pictures = member(wheels, "skimage/data/lfw_subset.npy")
    tasks = {}
    for name, side, pools in (("rnet", 24, (3, 3, 0)), ("onet", 48, (3, 3, 2, 0))):
        state = member(wheels, f"facenet_pytorch/data/{name}.pt")
        if state is None or pictures is None:
            return {}
        gray = torch.from_numpy(np.load(io.BytesIO(pictures), allow_pickle=False)).float()[:, None]  # (200, 1, 25, 25)
        gray = nn.functional.interpolate(gray, size=(side, side), mode="bilinear") * 2 - 1
        labels = torch.arange(len(gray)) < len(gray) // 2  # the faces are first
        held = torch.arange(len(gray)) % 4 == 0
        clean = gray[~held]
        draws = torch.randn(4, *clean.shape, generator=torch.Generator().manual_seed(SEED))
        noisy = (clean + NOISE * draws).clamp(-1, 1).flatten(0, 1)
        network = Stage(torch.load(io.BytesIO(state), weights_only=True), pools)
        tests = {"clean": (clean, labels[~held].long()), "noisy": (noisy, labels[~held].long().repeat(4))}
        color = {key: (images.expand(-1, 3, -1, -1).contiguous(), target) for key, (images, target) in tests.items()}
        tasks[f"mtcnn {name}"] = Task(network, gray[held].expand(-1, 3, -1, -1).contiguous(), color)
    return tasks


def bytes_of(path: Path) -> list[int]:
    """The first and last 1024 bytes without the white space around them, 256 where there is none (magika's own rule)."""
    block = 4096
    content = path.read_bytes()
    first, last = content[:block].lstrip(), content[-block:].rstrip()
    if len(content) <= block:
        first = last = content.strip()
    first, last = first[:1024], last[-1024:]
    return [*first, *[256] * (1024 - len(first)), *[256] * (1024 - len(last)), *last]


def files(wheels: list[Path]) -> dict[str, Task]:
    """Magika on files of this Python installation, at most 40 a type; every fifth calibrates, the others are judged."""
    model, config = (member(wheels, f"{MAGIKA}/{name}") for name in ("model.onnx", "config.min.json"))
    if model is None or config is None:
        return {}
    names = json.loads(config)["target_labels_space"]
    rows: dict[str, list[list[int]]] = {}
    roots = {Path(json.__file__).parents[1], Path(torch.__file__).parents[1]}
    found = [(path, path.suffix[1:]) for root in sorted(roots) for path in root.rglob("*.*")]
    # In an order that does not follow the folders, so that no package gives all files of a type.
    for path, suffix in sorted(found, key=lambda item: (hashlib.sha256(item[0].name.encode()).digest(), item)):
        kept = rows.setdefault(EXTENSIONS.get(suffix, ""), [])
        if suffix in EXTENSIONS and len(kept) < FILES_PER_LABEL and path.is_file() and path.stat().st_size >= 256:
            codes = bytes_of(path)
            if codes not in kept:
                kept.append(codes)
    pairs = [(codes, names.index(label)) for label, kept in sorted(rows.items()) for codes in kept if len(kept) >= 5]
    inputs, labels = torch.tensor([codes for codes, _ in pairs]), torch.tensor([label for _, label in pairs])
    held = torch.arange(len(pairs)) % 5 == 0
    print(f"magika: {len(pairs)} files of {len(labels.unique())} types", flush=True)
    tests = {"files": (inputs[~held], labels[~held])}
    return {"magika": Task(FileType(constants(model)), inputs[held], tests, entry="convolution*")}


def answers(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    """What every head answers, over batches."""
    with torch.no_grad():
        parts = [network(batch) for batch in inputs.split(BATCH)]
    heads = [part if isinstance(part, tuple) else (part,) for part in parts]
    return [torch.cat(column) for column in zip(*heads, strict=True)]


def score(expected: list[Tensor], found: list[Tensor], labels: Tensor) -> dict[str, float]:
    """Accuracy and agreement with the float network in %, and how far the other heads (box, landmarks) moved.

    Moved: root mean square over the pictures of faces, in % of the side of the picture.
    """
    choice = found[0].argmax(dim=1)
    row = {
        "accuracy": 100 * (choice == labels).float().mean().item(),
        "agreement": 100 * (choice == expected[0].argmax(dim=1)).float().mean().item(),
    }
    for name, one, other in zip(("box", "landmarks"), expected[1:], found[1:], strict=False):
        row[f"{name} moved"] = 100 * (one - other)[labels == 1].square().mean().sqrt().item()
    return row


def compare(task: Task) -> dict[str, Any]:
    """The float network and its conversions, on every test."""
    task.network.eval()
    expected = {name: answers(task.network, inputs) for name, (inputs, _) in task.tests.items()}
    rows: dict[str, Any] = {
        "float": {name: score(expected[name], expected[name], labels) for name, (_, labels) in task.tests.items()}
    }
    for codes, (negative, positive) in LEVELS.items():
        for granularity, entry in itertools.product(GRANULARITIES, (None, task.entry) if task.entry else (None,)):
            wide = ps.QuantSpec(127, 128, granularity=granularity, init="mse")
            overrides = {} if entry is None else {entry: wide}
            spec = ps.QuantSpec(negative, positive, granularity=granularity, init="mse", overrides=overrides)
            qann = ps.quantize(task.network, spec, example=task.calibration[:2])
            ps.calibrate(qann, task.calibration.split(BATCH))
            snn = ps.convert(qann)
            proof = ps.verify(qann, snn, next(iter(task.tests.values()))[0].split(BATCH), scope=False)
            row: dict[str, Any] = {}
            for name, (inputs, labels) in task.tests.items():
                counter = FiringCounter()
                with snn.observe(counter):
                    row[name] = score(expected[name], answers(snn, inputs), labels)
                fired = counter.up_to(1)
                row[name] |= {"events": fired.events_per_neuron, "spikes": fired.spikes_per_neuron}
            row["proof"] = {"exact": proof.exact, "compared": proof.compared, "different": proof.diverged,
                            "conclusive": proof.conclusive, "sites": len(proof.sites)}  # fmt: skip
            rows[f"{codes} levels, step per {granularity}{', entry of 256' if entry else ''}"] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*", type=Path)
    wheels = parser.parse_args().wheels
    if missing := [str(wheel) for wheel in wheels if not wheel.is_file()]:
        sys.exit(f"no such file: {', '.join(missing)}; fetch the wheels first: {DOWNLOAD}")
    torch.set_num_threads(1)
    tasks = {**faces(wheels), **files(wheels)}
    if not tasks:
        sys.exit(
            f"expected the wheels of a network and of its test pictures, got {len(wheels)} files; fetch: {DOWNLOAD}"
        )
    results: dict[str, Any] = {}
    failures = 0
    for name, task in tasks.items():
        weights = sum(parameter.numel() for parameter in task.network.parameters())
        print(f"{name}: {weights:,} weights", flush=True)
        results[name] = {"weights": weights, "calibrated_on": len(task.calibration), "judged_on": {}}
        for test, (inputs, labels) in task.tests.items():
            digest = hashlib.sha256(inputs.numpy().tobytes()).hexdigest()
            kinds = len(labels.unique())
            results[name]["judged_on"][test] = {"inputs": len(labels), "labels": kinds, "sha256": digest}
        results[name]["rows"] = compare(task)
        for title, row in results[name]["rows"].items():
            proof = row.get("proof", {"exact": True, "conclusive": True})
            failures += not proof["exact"]
            remark = "" if proof["exact"] else ", NOT EXACT"
            remark += "" if proof["conclusive"] else ", comparison void"
            for test in task.tests:
                figures = ", ".join(f"{key} {value:.2f}" for key, value in row[test].items())
                print(f"  {title:>42}, {test:>5}: {figures}{remark}", flush=True)
    digests = {wheel.name: hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}
    keep("shipped_network", {"conditions": conditions(SEED), "wheels": digests, "results": results})
    raise SystemExit(failures)


if __name__ == "__main__":
    main()
