"""The whole way from data to a verified spiking network, in one run directory.

    train an ANN -> quantize -> calibrate -> fine-tune -> convert -> verify -> evaluate -> count and price
    where a recipe asks for it, from there:  train through time -> verify -> evaluate -> count and price

The comparison is fair by construction: a control, the ANN, continues for exactly the epochs that the quantized network is
fine-tuned, from the same weights, with the same schedule, data, augmentation, distillation, averaging and seed. It
continues again beside a network that is trained through time.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polarspike import data
from polarspike.calibration import calibrate
from polarspike.checkpoint import Saved, save
from polarspike.common.files import replacing
from polarspike.common.modules import move_for_training
from polarspike.conversion import convert
from polarspike.data import AnyDataset, Split
from polarspike.data.events import FrameSpec
from polarspike.data.streamed import StreamedDataset
from polarspike.equivalence import require_timesteps
from polarspike.errors import RunError, SpecError
from polarspike.experiments import parents
from polarspike.experiments.outcome import Outcome, examine, examine_through_time
from polarspike.experiments.recipe import Recipe
from polarspike.parallel import distributed
from polarspike.quantization import quantize
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import Seen, conversion_for, seen
from polarspike.runs import RunDirectory
from polarspike.sources import Say, Weights, silent
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork, unroll
from polarspike.training import fit

_TEST_BATCH = 256
# A colour picture of 224x224 pixels: of larger samples, a batch where nothing is trained takes fewer.
_USUAL_SAMPLE = 3 * 224 * 224
_FINGERPRINT_IMAGES = 32


@dataclass(frozen=True)
class Prepared:
    """An experiment whose data are loaded and whose network is built: what could not work, or convert, was refused by now.

    ``digest`` is the SHA-256 of its file of weights, if it has one, and ``said`` what became of them, one line each.
    """

    recipe: Recipe
    dataset: AnyDataset
    ann: nn.Module
    device: str
    digest: str | None = None
    said: tuple[str, ...] = ()


def prepare(recipe: Recipe, *, root: str | None = None, download: bool = False, device: str = "cpu") -> Prepared:
    """Load the data and build the network, before there is a run directory that a wrong name would leave behind.

    Args:
        recipe: the experiment.
        root: the folder of the dataset's files, where it is not the usual one.
        download: allow the dataset to be downloaded.
        device: where to train and evaluate.

    Raises:
        SpecError: an unknown model, option or device, a batch that is larger than the dataset, or frames of images.
        DataError: the dataset is unknown, missing or damaged, or its validation part would lack a class.
        InputError: random changes that images of this shape cannot have.
        OperatorError: the network cannot be quantized, or not be trained through time, as the recipe asks.
        CheckpointError: the file of weights is missing or damaged, or does not fit.
        MissingExtraError: they need torchvision, which is not installed.
    """
    with distributed.together():
        require_device(device)
        weights = parents.require(recipe.model, recipe.weights)
    dataset = load_dataset(recipe.data, root, download=download, frames=recipe.asked_frames, sequences=recipe.in_time)
    with distributed.together():
        if recipe.weights is not None:
            dataset = parents.as_trained(dataset, recipe.model)
        if recipe.validation:
            dataset = dataset.split_validation(recipe.validation)
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
        said: list[str] = []
        ann = build_model(dataset, recipe, weights, said.append)
        require_converts(recipe, ann, next(iter(dataset.evaluation(2, images=2)))[0])
        return Prepared(recipe, dataset, ann, device, digest, tuple(said))


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
        run: its directory: config, log and checkpoint of each stage; ``qann.safetensors`` and ``snn.safetensors`` before
            training through time, ``snn_through_time.safetensors`` after it; at the end ``results.json``, ``report.txt``.
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
    train, validate, test, calibration = _loaders(dataset, recipe, device)
    ann = move_for_training(prepared.ann, device)
    reader = recipe.read_by(ann)
    if recipe.in_time:
        left = [t for t in recipe.timesteps if t not in recipe.asked_timesteps]
        say(
            f"bins as timesteps, reading={recipe.reading!r}: sequences of {recipe.frames.bins} frames"
            + (f", which have no T = {', '.join(map(str, left))}" if left else "")
        )

    for line in prepared.said:
        say(line)
    file = "" if recipe.weights is None else Path(recipe.weights).name
    if recipe.trains_ann:
        where = device if processes == 1 else f"{processes} x {torch.device(device).type}"
        start = f" from the weights of {file} and a fresh head" if file else ""
        say(f"train the ANN: {recipe.model} on {recipe.data}{start}, {recipe.ann.epochs} epochs ({where})")
        fit(reader, train, recipe.ann, validate=validate, run=run.stage("ann"), resume=run.resume)
    else:
        say(f"take the ANN as it is: {recipe.model} with the weights of {file}")
        ann.eval()
    say(f"quantize and calibrate ({recipe.quant.init})")
    qann = quantize_for(recipe, dataset, ann, calibration, prepared.digest)
    asked = recipe.qann.distillation or (recipe.learns_order and recipe.through_time.distillation)
    master = copy.deepcopy(reader) if asked else None
    teacher = master if recipe.qann.distillation else None
    say(f"fine-tune the quantized network, {recipe.qann.epochs} epochs")
    beside: dict[str, Any] = {"validate": validate, "teacher": teacher, "resume": run.resume}
    fit(recipe.read_by(qann), train, recipe.qann, run=run.stage("qann"), **beside)
    say(f"continue the ANN for the same {recipe.qann.epochs} epochs")
    control = dataclasses.replace(recipe.qann, activity=0.0, timesteps=(1,))  # it has no spikes, and answers at once
    fit(reader, train, control, run=run.stage("control"), **beside)

    say("convert, verify and evaluate")
    snn = convert(qann, conversion_for(recipe.converted_reading))
    _keep(run, qann=qann, snn=snn)
    proof, reading = _proof_batches(dataset, recipe), recipe.converted_reading
    outcome = examine(reader, qann, snn, test, proof, recipe.asked_timesteps, reading)
    if recipe.learns_order:
        net = unroll_for(recipe, snn)
        teacher = master if recipe.through_time.distillation else None
        further = {**beside, "teacher": teacher}
        say(f"train the spiking network through time, {recipe.through_time.epochs} epochs")
        fit(net, train, recipe.through_time, run=run.stage("through_time"), **further)
        _keep(run, snn_through_time=net)
        say(f"continue the ANN for the same {recipe.through_time.epochs} epochs")
        fit(reader, train, recipe.through_time, run=run.stage("through_time_control"), **further)
        say("verify and evaluate what was trained through time")
        found = examine_through_time(reader, net, test, proof, recipe.asked_timesteps)
        outcome = dataclasses.replace(outcome, through_time=found)
    run.write_json("results.json", json.loads(json.dumps(outcome.to_dict())))
    if not distributed.is_main():
        return outcome
    try:
        with replacing(run.path / "report.txt") as partial:
            partial.write_text(f"{outcome}\n", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{run.path}: report.txt cannot be written ({error}); check permissions and free space"
        ) from error
    return outcome


def _keep(run: RunDirectory, **networks: Saved) -> None:
    """Save finished networks under these names; a run that is resumed writes the same again."""
    with distributed.together():
        for name, network in networks.items() if distributed.is_main() else ():
            save(network, run.path / f"{name}.safetensors")


def quantize_for(
    recipe: Recipe, dataset: AnyDataset, ann: nn.Module, calibration: Iterable[Any], digest: str | None = None
) -> QuantizedNetwork:
    """The calibrated quantized network of a trained ANN, with what a user of its file must know in ``notes``."""
    device = next(ann.parameters()).device
    example, _ = next(iter(calibration))
    if recipe.in_time:
        reading = recipe.converted_reading
        example, calibration = seen(example, reading), Seen(calibration, reading)
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
        if recipe.fresh_head:  # these are not the weights of the file alone
            qann.notes["weights"]["fresh_head"] = True
    if isinstance(dataset, StreamedDataset):
        qann.notes |= {"shape": [dataset.in_channels, *dataset.image_size], "crop": dataset.size / dataset.resize}
    if (frames := recipe.asked_frames) is not None:
        qann.notes |= {"frames": frames.to_dict(), "reading": recipe.converted_reading}
    return qann


def unroll_for(recipe: Recipe, snn: SpikingNetwork) -> TemporalNetwork:
    """What is trained through time: it starts with the weights, steps and notes of the converted network."""
    net = unroll(snn, leak=recipe.leak, learned=recipe.learned_leak)
    net.notes |= {"reading": recipe.reading}
    return net


def require_converts(recipe: Recipe, ann: nn.Module, batch: torch.Tensor) -> None:
    """Refuse a network or levels that will not convert, by a trial, before hours go into the float network.

    Args:
        recipe: how it would be quantized.
        ann: the float network, trained or not, on the CPU; it stays as it is.
        batch: images (batch, C, H, W), or where the recipe reads sequences, (batch, T, C, H, W).

    Raises:
        SpecError: levels or a gain that reach no site; more timesteps than codes stay exact for.
        OperatorError: an operator that cannot be quantized, or where the network learns through time, one that does not
            keep the batch in front.
    """
    frame = batch[:, 0] if recipe.in_time else batch
    qann = quantize(ann, recipe.quant, example=frame)
    for site in qann.sites().values():
        site.set_step(1.0)
    snn = convert(qann, conversion_for(recipe.converted_reading))
    if not recipe.in_time:  # sequences have few timesteps
        require_timesteps(snn, max(recipe.asked_timesteps), verb="train")
    if recipe.learns_order:
        with torch.no_grad():
            unroll_for(recipe, snn)(batch)


def build_model(dataset: AnyDataset, recipe: Recipe, weights: Weights | None = None, say: Say = silent) -> nn.Module:
    """The recipe's network for the images of a dataset, with these weights, or fresh ones from torch's global generator.

    ``say`` is told what became of the weights.
    """
    shape = data.Shape(dataset.in_channels, *dataset.image_size, dataset.num_classes)
    options = recipe.builder_options
    return parents.build(recipe.model, shape, options, weights, fresh_head=recipe.fresh_head, say=say)


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


def _loaders(dataset: AnyDataset, recipe: Recipe, device: str) -> tuple[Any, Any, Any, Any]:
    """Training (shuffled, augmented), validation (None without), test and calibration batches."""
    there = None if torch.device(device).type == "cpu" else device  # a GPU changes images faster than it is fed
    size, workers = evaluation_batch(dataset, _frames_of(recipe)), recipe.workers
    return (
        dataset.training(recipe.batch_size, workers=workers, device=there),
        dataset.evaluation(size, "validation", workers=workers) if recipe.validation else None,
        dataset.evaluation(size, workers=workers),
        dataset.evaluation(size, "train", images=recipe.calibration_images, seed=recipe.seed, workers=workers),
    )


def _proof_batches(dataset: AnyDataset, recipe: Recipe) -> list[Any]:
    """The first ``proof_images`` images of the test part."""
    size = evaluation_batch(dataset, _frames_of(recipe))
    return list(dataset.evaluation(size, images=recipe.proof_images))


def _frames_of(recipe: Recipe) -> int:
    """How many frames a sample has; 1 of images."""
    return recipe.frames.bins if recipe.in_time else 1


def evaluation_batch(dataset: AnyDataset, frames: int = 1) -> int:
    """Samples per batch where nothing is trained: sequences take the memory of their frames, large samples theirs."""
    sample = dataset.in_channels * math.prod(dataset.image_size)
    return max(1, _TEST_BATCH * _USUAL_SAMPLE // max(sample, _USUAL_SAMPLE) // frames)
