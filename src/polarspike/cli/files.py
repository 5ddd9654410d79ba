"""Networks from files, and images that fit them, scaled as in their training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from polarspike import data, sources
from polarspike.checkpoint import Saved, load
from polarspike.cli.command import tell
from polarspike.data import AnyDataset, Normalization, StreamedDataset
from polarspike.data.events import FrameSpec, SequenceDataset
from polarspike.errors import CheckpointError, DataError, SpecError
from polarspike.experiments.experiment import evaluation_batch, require_device
from polarspike.experiments.recipe import RecipeReading
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import AtOnce, OverFrames, Seen
from polarspike.sources.preprocessing import Preprocessing
from polarspike.specs import Reading
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork

_BATCH = 256


def load_static(path: Path) -> QuantizedNetwork | SpikingNetwork:
    """The quantized or spiking network of a file.

    Raises:
        CheckpointError: the file holds another one.
    """
    return _static(path, load(path))


def load_quantized(path: Path) -> QuantizedNetwork:
    """The quantized network of a file.

    Raises:
        CheckpointError: the file holds none.
    """
    network = load_static(path)
    if not isinstance(network, QuantizedNetwork):
        raise CheckpointError(f"{path}: expected a quantized network (qann.safetensors), the file holds a spiking one")
    return network


def load_spiking(path: Path) -> SpikingNetwork:
    """The spiking network of a file.

    Raises:
        CheckpointError: the file holds none.
    """
    return as_spiking(path, load(path))


def as_spiking(path: Path, network: Saved) -> SpikingNetwork:
    """The network that was read from a file, if it is a spiking one.

    Raises:
        CheckpointError: it is none.
    """
    network = _static(path, network)
    if not isinstance(network, SpikingNetwork):
        raise CheckpointError(
            f"{path}: expected a spiking network, the file holds a quantized one; convert it first: "
            f"polarspike convert {path} SNN.safetensors"
        )
    return network


def _static(path: Path, network: Saved) -> QuantizedNetwork | SpikingNetwork:
    if isinstance(network, TemporalNetwork):
        raise CheckpointError(
            f"{path}: expected a quantized or converted network, the file holds one that was trained through time, whose "
            "membranes leak from frame to frame; it is for polarspike evaluate and verify, and no format exports it"
        )
    return network


@dataclass(frozen=True)
class Source:
    """Where images come from: the options ``--data``, ``--root``, ``--download`` and ``--device``."""

    data: str | None
    root: Path | None
    download: bool
    device: str

    def check(self) -> None:
        """Refuse what is wrong before anything is loaded.

        Raises:
            SpecError: this machine has no such device.
            DataError: an unknown dataset.
        """
        require_device(self.device)
        if self.data is not None and self.data not in data.names():
            data.load(self.data)  # raises: the registry knows the closest name


def reading_of(path: Path, network: QuantizedNetwork | SpikingNetwork) -> Reading:
    """What a file's network takes the bins of event recordings for; ``"channels"`` where the file does not say.

    Raises:
        CheckpointError: the file says something else, or its spiking network was converted for another reading.
    """
    noted = network.notes.get("reading", "channels")
    if noted not in get_args(Reading):
        raise CheckpointError(
            f"{path}: expected the note 'reading' to be one of {', '.join(get_args(Reading))}, got {noted!r}"
        )
    reading: Reading = noted
    if isinstance(network, SpikingNetwork) and reading not in ("channels", network.spec.reading):
        raise CheckpointError(
            f"{path}: trained on sequences with reading={reading!r}, and converted with reading={network.spec.reading!r}; "
            f"convert its quantized network again: polarspike convert QANN {path}, or ConvertSpec(reading={reading!r})"
        )
    return reading


@dataclass(frozen=True)
class Images:
    """Test images, or sequences of frames, that fit a network.

    Args:
        dataset: where they are from.
        normalization: of an image or a frame.
        reading: of sequences; ``"channels"`` for images.
    """

    dataset: AnyDataset
    normalization: Normalization
    reading: RecipeReading = "channels"

    @property
    def frames(self) -> int | None:
        """T of sequences; None for images."""
        return self.dataset.bins if isinstance(self.dataset, SequenceDataset) else None

    def read_by(self, network: Saved) -> nn.Module:
        """A module that answers to these batches as the network does: T steps of a spiking one are the first T frames."""
        if self.frames is None or self.reading == "through-time":
            return network
        return OverFrames(network) if isinstance(network, SpikingNetwork) else AtOnce(network, self.reading)

    def at_one_timestep(self, count: int | None = None) -> Any:
        """Batches of what a spiking network takes at one timestep: images, or single frames."""
        batches = self.batches(count)
        return batches if self.frames is None else Seen(batches, "frames")

    def batches(self, count: int | None = None, *, workers: int = 0) -> Any:
        """Batches of the first ``count`` test images (sequences), of all if None; workers decode those in files.

        Raises:
            SpecError: there are not so many.
        """
        there = self.dataset.count("test")
        if count is not None and not 1 <= count <= there:
            raise SpecError(f"{self.dataset.name}: expected a number of its test images, 1..{there}, got {count}")
        size = evaluation_batch(self.dataset, self.frames or 1)
        return self.dataset.evaluation(size, images=count, normalization=self.normalization, workers=workers)


def images_for(path: Path, network: Saved, source: Source, otherwise: str) -> Images:
    """The test images of a dataset, or its sequences, refused if the network of ``path`` was not made for such images.

    Args:
        path: of the network's file, for messages and notes.
        network: that was read from it.
        source: the dataset asked for.
        otherwise: what the command can do in their place, for a file that names no dataset.

    Raises:
        CheckpointError: the file does not say how images are scaled, or how sequences are read.
        DataError: the dataset is unknown or missing, has other channels or classes than the network, or no sequences for
            one that reads them.
        InputError: the network cannot take images of this size.
    """
    notes = network.notes
    try:
        made_for, classes = str(notes["data"]), len(notes["classes"])
        normalization = Normalization.from_dict(notes["normalization"])
    except (KeyError, TypeError, AttributeError, SpecError) as error:
        raise CheckpointError(
            f"{path}: expected notes with 'data', 'classes' and 'normalization', as train and convert --images DATASET "
            f"write them, got {', '.join(sorted(notes)) or 'none'}: the file names no test images. {otherwise}"
        ) from error
    if source.data is None and made_for not in data.names():
        raise DataError(
            f"{path}: made for {made_for!r}, which is no dataset here; give --data, one of: {', '.join(data.names())}"
        )
    name, root = source.data or made_for, None if source.root is None else str(source.root)
    reading: RecipeReading = "through-time" if isinstance(network, TemporalNetwork) else reading_of(path, network)
    frames = _frames(path, notes, name)
    in_time = reading != "channels"
    if in_time and frames is None and name in data.events.names():
        raise CheckpointError(
            f"{path}: expected the note 'frames' beside reading={reading!r}, as polarspike train writes it, got none: "
            "nothing says how many frames a sequence has"
        )
    if in_time and name in data.names() and not data.describe(name).events:
        raise DataError(
            f"{path}: its network reads sequences of frames (reading={reading!r}), {name} has single images; give --data, "
            f"one of: {', '.join(data.events.names())}, or run the network in Python: polarspike.load"
        )
    loaded = data.load(name, root, download=source.download, frames=frames, sequences=in_time)
    dataset = _as_cut(path, notes, loaded)
    wanted, got = (len(normalization.mean), classes), (dataset.in_channels, dataset.num_classes)
    if wanted != got:
        raise DataError(
            f"{path}: made for {made_for}: expected images of {wanted[0]} channels in {wanted[1]} classes, "
            f"{dataset.name} has {got[0]} channels and {got[1]} classes; give --data {made_for}"
        )
    if dataset.name != made_for:
        tell(f"note: {path} was made for {made_for}, and its classes may mean something else in {dataset.name}")
    images = Images(dataset, normalization, reading)
    with torch.no_grad():
        first, _ = next(iter(images.batches(1)))
        images.read_by(network)(first)  # a network for one image size says so here
    return images


def noted(path: Path, notes: Mapping[str, Any]) -> Preprocessing:
    """What the notes of a network's file say of its images; nothing where they are silent.

    Raises:
        CheckpointError: a note that cannot mean that.
    """
    try:
        shape = tuple(notes["shape"]) if "shape" in notes else None
        if not isinstance(scale := notes.get("normalization", {}), Mapping):
            raise SpecError(f"normalization: expected mean and std of each channel, got {scale!r}")
        scaling = Normalization.from_dict(scale) if scale else None
        return Preprocessing(shape, scaling, float(notes.get("crop", 1.0)))
    except (SpecError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: expected the notes 'shape' (C, H, W), 'normalization' and 'crop' as convert and train write them, "
            f"got: {error}"
        ) from error


def pictures_for(
    path: Path, network: Saved, source: str, count: int, *, verb: str, root: Path | None = None
) -> tuple[Tensor, ...]:
    """Batches of at most ``count`` images without labels, cut and scaled as the notes of the network's file say.

    Args:
        path: of the network's file.
        network: that was read from it.
        source: of images, as :func:`polarspike.sources.images` takes it.
        count: at most so many.
        verb: the command, and the function in Python, that asks.
        root: the folder of the dataset's files, where it is not the usual one.

    Raises:
        SpecError: the network takes something else than one image.
        DataError: what :func:`polarspike.sources.images` cannot read, or pictures where nothing says how they are scaled.
    """
    notes, shapes = network.notes, network.signature.shapes
    if len(shapes) != 1 or len(shapes[0][1]) != 3:
        raise SpecError(
            f"--images {source}: expected a network of one image (C, H, W), got inputs {[list(s) for _, s in shapes]}; give "
            f"batches to polarspike.{verb} in Python"
        )
    known = dataclasses.replace(noted(path, notes), shape=shapes[0][1])
    if known.normalization is None and not source.lower().endswith((".npy", ".safetensors")):
        raise DataError(
            f"{path}: expected the note 'normalization', as convert --images and train write it, got none: nothing says how "
            f"the pictures of {source} are scaled; give a .npy file of inputs"
        )
    images, _ = sources.images(source, known, count, root=root)
    return torch.split(images, _BATCH)


def _as_cut(path: Path, notes: Mapping[str, Any], dataset: AnyDataset) -> AnyDataset:
    """Pictures on disk, cut to the size and by the share that the file's network was calibrated with."""
    if not isinstance(dataset, StreamedDataset) or (known := noted(path, notes)).shape is None:
        return dataset
    _, height, width = known.shape
    if height != width:
        raise CheckpointError(f"{path}: expected the note 'shape' of a square, got {height}x{width} pixels")
    return dataclasses.replace(dataset, size=height, resize=max(height, round(height / known.crop)))


def _frames(path: Path, notes: Mapping[str, Any], name: str) -> FrameSpec | None:
    """How a file's network wants the recordings of an event data set as frames; None for images, or if it does not say."""
    if "frames" not in notes or name not in data.events.names():
        return None
    try:
        return FrameSpec.from_dict(notes["frames"])
    except (SpecError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: expected the note 'frames' as FrameSpec.to_dict writes it, got: {error}"
        ) from error
