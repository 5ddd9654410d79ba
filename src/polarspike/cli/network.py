"""What the commands on somebody's own network share: its options, and the network, images and notes that they give."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from polarspike import data, sources
from polarspike.cli.command import Command, tell
from polarspike.errors import SpecError
from polarspike.experiments.experiment import require_device
from polarspike.sources import Preprocessing
from polarspike.sources.preprocessing import parse_normalization, parse_shape
from polarspike.specs import QuantSpec

_SEED = 0

#: Where nothing is trained afterwards: steps of least square error, one per channel, 16 levels at rectified sites.
#: docs/reference.md says it, too.
TRAINING_FREE = QuantSpec(negative=7, positive=15, init="mse", granularity="channel")


@dataclass(frozen=True, kw_only=True)
class NetworkCommand(Command):
    """A command on a float network of somebody's own.

    Args:
        model: torchvision:NAME (or its bare name), timm:NAME, FILE.py:FACTORY or PACKAGE.MODULE:FACTORY (your own code,
            which is run), PROGRAM.pt2 (of torch.export.save), or the file of a quantized network.
        weights: a local .safetensors file, or a state dict that torch.save wrote. Nothing is ever downloaded, and no code
            of the file is run.
        random_weights: do without weights: take the network as it is built.
        options: of the network's builder, such as num_classes=10 image_size=96.
        images: a folder of .png and .jpg files, a .npy or .safetensors file of one tensor (N, C, H, W), a .tar shard of
            labelled pictures, or a dataset, also one that stays on disk. A picture that cannot be read is an error: without
            it steps would be those of fewer images, and nothing would say so.
        images_count: at most this many of them, evenly spread.
        shape: of one input, C,H,W; what the package says for the network, if not given.
        normalize: imagenet, none (pixels in 0..1), or MEAN;STD; what the package says, if not given. A file of floats is
            taken as it is without it.
        crop: share of a picture's shorter side that the cut keeps.
        batch_size: images that run together.
        quant: which codes the sites get.
        root: the folder of the dataset's files, where it is not the usual one.
        device: where to run.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    weights: Path | None = None
    random_weights: bool = False
    options: tuple[str, ...] = ()
    images: str | None = None
    images_count: int = 256
    shape: str | None = None
    normalize: str | None = None
    crop: float | None = None
    batch_size: int = 32
    quant: QuantSpec = field(default_factory=lambda: TRAINING_FREE)
    root: Path | None = None
    device: str = "cpu"

    @property
    def names_a_file(self) -> bool:
        """Whether the model is the file of a quantized network: it exists, or nothing else asks for a network."""
        path, asked = Path(self.model), self.weights is not None or self.random_weights
        if path.suffix in (".pt2", *sources.WEIGHT_FILES) or (":" in self.model and not path.exists()):
            return False
        return path.is_file() or path.suffix == ".safetensors" or not asked

    def prepare(self) -> Network:
        """Read and build everything that the options name; what is wrong with any of it is found here.

        Raises: what :func:`polarspike.sources.build` and :func:`polarspike.sources.images` raise.
        """
        require_device(self.device)
        if self.batch_size < 1:
            raise SpecError(f"--batch-size: expected an integer of at least 1, got {self.batch_size}")
        options = parse_options(self.options)
        known = self.wanted(sources.preprocessing(self.model, options))
        torch.manual_seed(_SEED)  # of random weights
        model = sources.build(self.model, self.weights, random_weights=self.random_weights, options=options, say=tell)
        batches: tuple[Tensor, ...] | None = None
        if self.images is not None:
            batches, known = self.batches(known)
        elif known.shape is None:
            raise SpecError(f"{self.model}: expected --images, or the shape of an input, such as --shape 3,224,224")
        network = Network(model.to(self.device), known, batches, self._notes(known))
        if self.images in data.names():
            network.notes.update(self._notes_of_dataset(network))
        return network

    def wanted(self, known: Preprocessing) -> Preprocessing:
        """What is known of the network's images, with what the options say in its place."""
        if self.shape is not None:
            known = dataclasses.replace(known, shape=parse_shape(self.shape))
        if self.crop is not None:
            known = dataclasses.replace(known, crop=self.crop)
        return known

    def batches(self, known: Preprocessing) -> tuple[tuple[Tensor, ...], Preprocessing]:
        """The images in batches (B, C, H, W), and how they were made."""
        scaling = None if self.normalize is None else parse_normalization(self.normalize)
        if scaling is not None:
            known = dataclasses.replace(known, normalization=scaling)
        assert self.images is not None
        images, known = sources.images(self.images, known, self.images_count, floats=scaling, root=self.root)
        if self.normalize is None and known.normalization is not None:
            tell(
                f"images: normalized by {known.normalization.mean}, {known.normalization.std} (floats: taken as they are)"
            )
        return torch.split(images.to(self.device), self.batch_size), known

    def _notes(self, known: Preprocessing) -> dict[str, Any]:
        """What a user of the network's file must know, as plain data; names of files, never their places."""
        notes: dict[str, Any] = {"model": self.model.rpartition("/")[2]}
        file = Path(self.model) if self.model.endswith(".pt2") else self.weights
        if file is not None:
            notes["weights"] = {"file": file.name, "sha256": sources.sha256(file)}
        if known.shape is not None:
            notes["shape"] = list(known.shape)
        if known.crop != 1.0:
            notes["crop"] = known.crop
        if known.normalization is not None:
            notes["normalization"] = known.normalization.to_dict()
        if self.images is not None:
            notes["images"] = Path(self.images).name
        return notes

    def _notes_of_dataset(self, network: Network) -> dict[str, Any]:
        """What lets ``evaluate`` and ``verify`` find test images, where the network has the dataset's classes and shape."""
        dataset = data.load(str(self.images), self.root)
        with torch.no_grad():
            answer = network.model(network.example)
        same = isinstance(answer, Tensor) and answer.dim() == 2 and answer.shape[1] == dataset.num_classes
        shape = network.preprocessing.shape
        fits = shape == (dataset.in_channels, *dataset.image_size)
        if isinstance(dataset, data.StreamedDataset):  # its pictures are cut to any square
            fits = shape is not None and shape[0] == dataset.in_channels and shape[1] == shape[2]
        if not same or not fits:
            return {}
        return {"data": dataset.name, "classes": list(dataset.classes)}


@dataclass(frozen=True)
class Network:
    """A float network with what runs through it.

    Args:
        model: in evaluation mode.
        preprocessing: of its images; the shape is known.
        batches: of images, or None.
        notes: for the network's file.
    """

    model: nn.Module
    preprocessing: Preprocessing
    batches: tuple[Tensor, ...] | None
    notes: dict[str, Any]

    @property
    def example(self) -> Tensor:
        """Two inputs: images where there are some, else normal noise."""
        if self.batches is not None:
            first = self.batches[0][:2]
            return first if len(first) == 2 else torch.cat([first, first])
        assert self.preprocessing.shape is not None
        noise = torch.randn(2, *self.preprocessing.shape, generator=torch.Generator().manual_seed(_SEED))
        return noise.to(next(iter(self.model.parameters()), noise).device)


def parse_options(options: tuple[str, ...]) -> dict[str, Any]:
    """``("num_classes=10", "act=relu")`` -> {"num_classes": 10, "act": "relu"}: values are Python literals, else text.

    Raises:
        SpecError: not of the form NAME=VALUE.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name.isidentifier():
            raise SpecError(f"--options: expected NAME=VALUE such as num_classes=10, got {option!r}")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
