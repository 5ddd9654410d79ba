"""The whole way from data to a verified spiking network, in one run directory.

    train an ANN -> quantize -> calibrate -> fine-tune -> convert -> verify -> evaluate -> count and price

The comparison is fair by construction: a control, the ANN, continues for exactly the epochs that the quantized network is
fine-tuned, from the same weights, with the same schedule, data, augmentation, distillation, averaging and seed.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polarspike import data, distributed, parents
from polarspike.calibration import calibrate
from polarspike.checkpoint import save
from polarspike.conversion import convert
from polarspike.data import AnyDataset, Augmentation, Split
from polarspike.data.events import FrameSpec
from polarspike.data.streamed import StreamedDataset
from polarspike.errors import RunError, SpecError
from polarspike.files import replacing
from polarspike.modules import move_for_training
from polarspike.outcome import Outcome, examine
from polarspike.quantization import quantize
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import AtOnce, Seen, conversion_for, seen, timesteps_of
from polarspike.runs import RunDirectory
from polarspike.sources import Weights
from polarspike.specs import QuantSpec, Reading, Spec, TrainSpec
from polarspike.training import fit

_TEST_BATCH = 256
_FINGERPRINT_IMAGES = 32


@dataclass(frozen=True)
class Recipe(Spec):
    """One experiment as plain values.

    Args:
        data: a dataset of :mod:`polarspike.data`.
        model: a network of :mod:`polarspike.models`, or timm:NAME or torchvision:NAME.
        weights: a local file of trained weights for it; the float network is then taken as it is, without the training of
            ``ann``. Pixels are normalized and pictures cut as its package says, but scaled by bilinear interpolation to the
            data set's own size, which may cost some tenths of its published accuracy. Nothing is downloaded.
        width: channels of its first layer, None for its own default.
        options: of the network beside its width, by name.
        batch_size: of training.
        ann: how the float network is trained.
        quant: which codes the sites get.
        qann: how the quantized network is fine-tuned; the control continues with the same.
        timesteps: the T that are evaluated; each is verified, too. Of sequences, those below their number of frames, and
            that number itself.
        augment: the dataset's usual random changes in training.
        augmentation: further ones (RandAugment, erasing, MixUp, CutMix), or other values in place of the usual.
        frames: how the recordings of an event dataset become frames.
        reading: what the bins of an event dataset are: ``"channels"`` side by side, one timestep; or timesteps, which the
            spiking network is streamed through, T bins in T steps: ``"frames"``, each a first timestep of its own whose
            answers are averaged, or ``"integrate"``, whose mean frame the float network learns.
        calibration_images: training images, without augmentation, that choose the steps.
        proof_images: test images on which codes are compared.
        seed: of the initial weights.
        workers: processes that make training batches ahead, and all batches of pictures that are decoded meanwhile; the
            same batches, however many.
    """

    indifferent = frozenset({"workers"})

    data: str = "fashion-mnist"
    model: str = "resnet20"
    weights: str | None = None
    width: int | None = None
    options: Mapping[str, int | str] = field(default_factory=dict)
    batch_size: int = 128
    ann: TrainSpec = field(default_factory=TrainSpec)
    quant: QuantSpec = field(default_factory=QuantSpec)
    qann: TrainSpec = field(default_factory=TrainSpec)
    timesteps: tuple[int, ...] = (1, 2, 4, 8)
    augment: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    frames: FrameSpec = field(default_factory=FrameSpec)
    reading: Reading = "channels"
    calibration_images: int = 2048
    proof_images: int = 256
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "calibration_images", "proof_images"):
            self._require(name, getattr(self, name) >= 1, "an integer of at least 1")
        if self.width is not None and parents.package_of(self.model) is not None:
            raise SpecError(
                f"Recipe.width: expected None for {self.model}, got {self.width}; what its builder takes belongs in "
                "Recipe.options"
            )
        self._require("workers", self.workers >= 0, "an integer of at least 0")
        if self.in_time and self.data in data.names() and not data.describe(self.data).events:
            raise SpecError(
                f"Recipe.reading: expected 'channels' for {self.data}, whose images are no sequences, got {self.reading!r}; "
                f"those of event datasets are: {', '.join(data.events.names())}"
            )
        if self.ann.distillation:
            raise SpecError("Recipe.ann.distillation: the float network has no teacher; give it to qann instead")
        if self.ann.activity:
            raise SpecError("Recipe.ann.activity: the float network has no spikes to lower; give it to qann instead")
        self._require(
            "timesteps",
            bool(self.timesteps) and self.timesteps[0] == 1 and list(self.timesteps) == sorted(set(self.timesteps)),
            "increasing numbers of timesteps that start with 1",
        )

    @classmethod
    def _revive(cls, name: str, value: Any) -> Any:
        kinds: dict[str, Callable[[Any], Any]] = {
            "ann": TrainSpec.from_dict,
            "qann": TrainSpec.from_dict,
            "quant": QuantSpec.from_dict,
            "augmentation": Augmentation.from_dict,
            "frames": FrameSpec.from_dict,
            "timesteps": tuple,
        }
        return kinds[name](value) if name in kinds else value

    @property
    def asked_frames(self) -> FrameSpec | None:
        """``frames``, or None where they say nothing of images that are none."""
        plain = self.data in data.names() and not data.describe(self.data).events
        return None if plain and self.frames == FrameSpec() else self.frames

    @property
    def in_time(self) -> bool:
        """Whether the bins of an event dataset are timesteps."""
        return self.reading != "channels"

    @property
    def asked_timesteps(self) -> tuple[int, ...]:
        """The T that are evaluated: of sequences, those that they have."""
        return timesteps_of(self.timesteps, self.frames.bins) if self.in_time else self.timesteps

    def read_by(self, network: nn.Module) -> nn.Module:
        """A network without time as it reads this recipe's data: what is trained and evaluated."""
        return AtOnce(network, self.reading) if self.in_time else network

    def changes(self, usual: Augmentation) -> Augmentation:
        """All random changes in training, from those that are usual for the dataset."""
        return self.augmentation.over(usual) if self.augment else self.augmentation


@dataclass(frozen=True)
class Prepared:
    """An experiment whose data are loaded and whose network is built: what could not work was refused by now.

    ``digest`` is the SHA-256 of its file of weights, if it has one.
    """

    recipe: Recipe
    dataset: AnyDataset
    ann: nn.Module
    device: str
    digest: str | None = None


def prepare(recipe: Recipe, *, root: str | None = None, download: bool = False, device: str = "cpu") -> Prepared:
    """Load the data and build the network, before there is a run directory that a wrong name would leave behind.

    Args:
        recipe: the experiment.
        root: the folder of the dataset's files, where it is not the usual one.
        download: allow the dataset to be downloaded.
        device: where to train and evaluate.

    Raises:
        SpecError: an unknown model, option or device, a batch that is larger than the dataset, or frames of images.
        DataError: the dataset is unknown, missing or damaged.
        InputError: random changes that images of this shape cannot have.
        MissingExtraError: they need torchvision, which is not installed.
    """
    with distributed.together():
        require_device(device)
        weights = parents.require(recipe.model, recipe.weights)
    dataset = load_dataset(recipe.data, root, download=download, frames=recipe.asked_frames, sequences=recipe.in_time)
    with distributed.together():
        if recipe.weights is not None:
            dataset = parents.as_trained(dataset, recipe.model)
        if recipe.batch_size > dataset.count("train"):
            raise SpecError(
                f"batch_size: expected at most {dataset.count('train')} ({dataset.name}), got {recipe.batch_size}"
            )
        if recipe.proof_images > dataset.count("test"):
            raise SpecError(
                f"proof_images: expected at most {dataset.count('test')} ({dataset.name}), got {recipe.proof_images}"
            )
        dataset = dataclasses.replace(dataset, augmentation=recipe.changes(dataset.augmentation))
        dataset.augmentation.require(dataset.in_channels, *dataset.image_size)
        torch.manual_seed(recipe.seed)
        digest = None if weights is None else weights.sha256
        return Prepared(recipe, dataset, build_model(dataset, recipe, weights), device, digest)


def load_dataset(
    name: str,
    root: str | None = None,
    *,
    download: bool = False,
    frames: FrameSpec | None = None,
    sequences: bool = False,
) -> AnyDataset:
    """A data set, read by the main process first: what it fetches or keeps, the others find.

    Raises:
        DataError: as for :func:`polarspike.data.load`.
    """
    for turn in (True, False):
        with distributed.together():
            if distributed.is_main() == turn:
                dataset = data.load(name, root, download=download, frames=frames, sequences=sequences)
    return dataset


def require_device(device: str) -> None:
    """Refuse a device that torch does not know or this machine does not have.

    Raises:
        SpecError: with torch's own reason.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an AssertionError where torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise SpecError(
            f"device: expected one that this machine has, such as 'cpu', got {device!r}: {reason}"
        ) from error


def carry_out(prepared: Prepared, run: RunDirectory, *, say: Callable[[str], None] = lambda message: None) -> Outcome:
    """Do everything that a recipe asks for, in ``run``; a resumed run continues where it was.

    Args:
        prepared: the experiment; its network is trained in place.
        run: its directory: config, log and checkpoint of each stage, ``qann.safetensors``, ``snn.safetensors``,
            ``results.json``, ``report.txt``.
        say: told what begins, one line each.

    Raises:
        PolarspikeError: what the verbs raise that it calls.
    """
    recipe, dataset, device = prepared.recipe, prepared.dataset, prepared.device
    processes = distributed.world_size()
    run.configure(
        recipe=recipe,
        device=device if processes == 1 else torch.device(device).type,  # each takes its own, whose number is its rank
        data=fingerprint(dataset),
        processes=processes,
        **({} if prepared.digest is None else {"weights": prepared.digest}),  # to be continued from no other
    )
    train, test, calibration = _loaders(dataset, recipe, device)
    ann = move_for_training(prepared.ann, device)
    reader = recipe.read_by(ann)
    if recipe.in_time:
        left = [t for t in recipe.timesteps if t not in recipe.asked_timesteps]
        say(
            f"bins as timesteps, reading={recipe.reading!r}: sequences of {recipe.frames.bins} frames"
            + (f", which have no T = {', '.join(map(str, left))}" if left else "")
        )

    if recipe.weights is None:
        where = device if processes == 1 else f"{processes} x {torch.device(device).type}"
        say(f"train the ANN: {recipe.model} on {recipe.data}, {recipe.ann.epochs} epochs ({where})")
        fit(reader, train, recipe.ann, run=run.stage("ann"), resume=run.resume)
    else:
        say(f"take the ANN as it is: {recipe.model} with the weights of {Path(recipe.weights).name}")
        ann.eval()
    say(f"quantize and calibrate ({recipe.quant.init})")
    qann = quantize_for(recipe, dataset, ann, calibration, prepared.digest)
    teacher = copy.deepcopy(reader) if recipe.qann.distillation else None
    say(f"fine-tune the quantized network, {recipe.qann.epochs} epochs")
    fit(recipe.read_by(qann), train, recipe.qann, teacher=teacher, run=run.stage("qann"), resume=run.resume)
    say(f"continue the ANN for the same {recipe.qann.epochs} epochs")
    control = dataclasses.replace(recipe.qann, activity=0.0)  # it has no spikes to lower
    fit(reader, train, control, teacher=teacher, run=run.stage("control"), resume=run.resume)

    say("convert, verify and evaluate")
    snn = convert(qann, conversion_for(recipe.reading))
    outcome = examine(reader, qann, snn, test, _proof_batches(dataset, recipe), recipe.asked_timesteps, recipe.reading)
    run.write_json("results.json", json.loads(json.dumps(outcome.to_dict())))
    if not distributed.is_main():
        return outcome
    save(qann, run.path / "qann.safetensors")
    save(snn, run.path / "snn.safetensors")
    try:
        with replacing(run.path / "report.txt") as partial:
            partial.write_text(f"{outcome}\n", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{run.path}: report.txt cannot be written ({error}); check permissions and free space"
        ) from error
    return outcome


def quantize_for(
    recipe: Recipe, dataset: AnyDataset, ann: nn.Module, calibration: Iterable[Any], digest: str | None = None
) -> QuantizedNetwork:
    """The calibrated quantized network of a trained ANN, with what a user of its file must know in ``notes``."""
    device = next(ann.parameters()).device
    example, _ = next(iter(calibration))
    if recipe.in_time:
        example, calibration = seen(example, recipe.reading), Seen(calibration, recipe.reading)
    qann = quantize(ann, recipe.quant, example=example[:2].to(device))
    calibrate(qann, calibration)
    qann.notes = {
        "data": dataset.name,
        "normalization": dataset.normalization.to_dict(),
        "classes": list(dataset.classes),
        "model": recipe.model,
        "augmentation": recipe.changes(dataset.augmentation).to_dict(),
    }
    if recipe.weights is not None and digest is not None:
        qann.notes["weights"] = {"file": Path(recipe.weights).name, "sha256": digest}
    if isinstance(dataset, StreamedDataset):
        qann.notes |= {"shape": [dataset.in_channels, *dataset.image_size], "crop": dataset.size / dataset.resize}
    if (frames := recipe.asked_frames) is not None:
        qann.notes |= {"frames": frames.to_dict(), "reading": recipe.reading}
    return qann


def build_model(dataset: AnyDataset, recipe: Recipe, weights: Weights | None = None) -> nn.Module:
    """The recipe's network for the images of a dataset, with these weights, or fresh ones from torch's global generator."""
    shape = data.Shape(dataset.in_channels, *dataset.image_size, dataset.num_classes)
    options = {**recipe.options, **({} if recipe.width is None else {"width": recipe.width})}
    return parents.build(recipe.model, shape, options, weights)


def fingerprint(dataset: AnyDataset) -> dict[str, Any]:
    """What a run keeps of its data, to be continued on no others: counts, and SHA-256 of labels and of some images.

    Raises:
        DataError: a picture cannot be read.
    """
    parts: dict[str, Any] = {}
    for name, part in dataset.parts().items():
        count = len(part)
        some = sorted({number * count // _FINGERPRINT_IMAGES for number in range(_FINGERPRINT_IMAGES)})
        if isinstance(part, Split):
            content, shape = part.images[some].numpy().tobytes(), list(part.images.shape[1:])
        else:
            content, shape = b"".join(part.content(index)[0] for index in some), [dataset.in_channels]
        parts[name] = {
            "samples": count,
            "shape": shape,
            "labels": _digest(part.labels.numpy().tobytes()),
            "images": _digest(content),
        }
    return {"name": dataset.name, "classes": _digest("\n".join(dataset.classes).encode()), **parts}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _loaders(dataset: AnyDataset, recipe: Recipe, device: str) -> tuple[Any, Any, Any]:
    """Training (shuffled, augmented), test and calibration batches."""
    # Images in memory have nothing to decode: workers would only copy them.
    there = None if torch.device(device).type == "cpu" else device  # a GPU changes images faster than it is fed
    ahead: dict[str, Any] = {"workers": recipe.workers} if isinstance(dataset, StreamedDataset) else {}
    size = evaluation_batch(recipe)
    return (
        dataset.training(recipe.batch_size, workers=recipe.workers, device=there),
        dataset.evaluation(size, **ahead),
        dataset.evaluation(size, "train", images=recipe.calibration_images, seed=recipe.seed, **ahead),
    )


def _proof_batches(dataset: AnyDataset, recipe: Recipe) -> list[Any]:
    """The first ``proof_images`` images of the test part."""
    return list(dataset.evaluation(evaluation_batch(recipe), images=recipe.proof_images))


def evaluation_batch(recipe: Recipe) -> int:
    """Samples per batch where nothing is trained: sequences take the memory of their frames."""
    return max(1, _TEST_BATCH // recipe.frames.bins) if recipe.in_time else _TEST_BATCH
