"""Rehearse an experiment: every stage of a recipe on 64 random images, before hours are spent on it.

    overfit the float network -> quantize, calibrate -> overfit the quantized network -> convert -> verify at every T of the
    recipe -> evaluate -> count and price -> save and load -> export -> overfit through time -> verify, evaluate, save, load

Each of the three trainings begins with a step as the recipe has it, of a copy; what then learns by heart does so in float32,
without what holds it back.

A network that cannot learn 64 images by heart, or whose codes differ after conversion, has a mistake that no amount of data
repairs. Images are as the recipe's dataset has them, but for their size: they are cut to the smallest that exercises the
whole network (two patches a side of a Transformer), so that a minute is enough; sequences have three frames where each is a
first timestep of its own, or where a network is trained through them. Such a network through time is compared with its own
stream, and not with the event-by-event simulator, which would take longer than the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from polarspike import data, models
from polarspike.checkpoint import load, save
from polarspike.conversion import convert
from polarspike.counting import count_operations
from polarspike.data import Augmentation, ImageDataset, Normalization, Split
from polarspike.data.events import SequenceDataset
from polarspike.energy import CostTable, estimate_energy
from polarspike.equivalence import verify
from polarspike.errors import RunError
from polarspike.evaluation import evaluate
from polarspike.experiments import parents
from polarspike.experiments.experiment import build_model, quantize_for, require_converts, unroll_for
from polarspike.experiments.recipe import Recipe
from polarspike.exporters import export
from polarspike.proofs.temporal_equivalence import verify_temporal
from polarspike.quantized import refine
from polarspike.readings import OverFrames, conversion_for, verify_sequences
from polarspike.spiking.through_time import TemporalNetwork
from polarspike.training import fit
from polarspike.training_spec import TrainSpec

IMAGES = 64
_PROVED = 16  # of them, whose codes are compared
_COUNTED = 2  # of them, whose operations are counted
_FEW = 4  # of them, for a step as the recipe has it: on a CPU bfloat16 may be slow
_FOREIGN_SIDE = 64  # pixels of images for networks of other packages
_FRAMES = 3  # of a sequence whose frames are first timesteps, each proved alone, or through which gradients go
_ROUND, _MOST_ROUNDS = 8, 12  # steps of a round, and how many rounds a network gets to learn the images by heart


def rehearse(recipe: Recipe, *, say: Callable[[str], None] = lambda message: None) -> None:
    """Run every stage of a recipe on random images.

    Args:
        recipe: whose network, levels, optimizers and timesteps are used.
        say: told what begins, one line each.

    Raises:
        RunError: a stage fails: the images are not learned, a code differs, or a file does not come back as it was.
        PolarspikeError: what the stages themselves raise.
    """
    if recipe.converted_reading == "frames":
        recipe = dataclasses.replace(
            recipe, frames=dataclasses.replace(recipe.frames, bins=min(_FRAMES, recipe.frames.bins))
        )
    dataset = random_images(recipe)
    say(f"rehearse {recipe.model} on {IMAGES} random images {tuple(dataset.train.images.shape[1:])}, {recipe.data}")
    torch.manual_seed(recipe.seed)
    weights, shape = parents.require(recipe.model, recipe.weights), _shape(recipe)
    if weights is not None:  # whether they fit; the rehearsal itself learns from the start, on small images
        parents.build(recipe.model, shape, recipe.builder_options, weights, fresh_head=recipe.fresh_head, say=say)
    recipe.augmentation.require(shape.channels, shape.height, shape.width)
    ann = build_model(dataset, recipe)
    batches = list(dataset.evaluation(IMAGES, "train"))
    require_converts(recipe, ann, batches[0][0][:2])
    reader = recipe.read_by(ann)
    _step("the float network", reader, dataset, recipe, recipe.ann, say)
    _learn("the float network", reader, dataset, recipe, recipe.ann, say)
    qann = quantize_for(recipe, dataset, ann, batches)
    _step("the quantized network", recipe.read_by(qann), dataset, recipe, recipe.qann, say, reader)
    _learn("the quantized network", recipe.read_by(qann), dataset, recipe, recipe.qann, say)
    snn = convert(qann, conversion_for(recipe.converted_reading))
    inputs, _ = batches[0]
    for timesteps in recipe.asked_timesteps:
        # Without the scope, which no stage asks for and which costs several times the proof: it runs image by image.
        if recipe.in_time:
            proof = verify_sequences(qann, snn, [inputs[:_PROVED]], timesteps, scope=False)
        else:
            proof = verify(qann, snn, [inputs[:_PROVED]], timesteps=timesteps, scope=False)
        if (timesteps == 1 or recipe.converted_reading == "frames") and not proof.exact:
            raise RunError(
                f"rehearsal, verify at T = {timesteps}: {proof.different} codes differ, first at {proof.first_difference}"
            )
        say(f"verified at T = {timesteps}: {proof.different} of {proof.compared} codes differ")
    # A sequence has been read after all of its frames.
    last, spiking = (recipe.frames.bins, OverFrames(snn)) if recipe.in_time else (1, snn)
    right = evaluate(spiking, batches, last).correct[last]
    wanted = IMAGES
    if recipe.reading == "integrate":  # it refines the grid, on which an image may look otherwise
        wanted = evaluate(recipe.read_by(refine(qann, last)), batches).correct[1]
    if right < wanted:
        raise RunError(f"rehearsal, spiking network: expected {wanted} of {IMAGES} right at T = {last}, got {right}")
    counts = count_operations(snn, inputs[:_COUNTED], time_dim=1 if recipe.in_time else None)
    say(f"counted and priced: {estimate_energy(counts, CostTable.cmos45()).images} images")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "snn.safetensors"
        save(snn, path)
        loaded = load(path)
        answers = OverFrames(loaded)(inputs) if recipe.in_time else loaded(inputs)
        if not torch.equal(answers, spiking(inputs)):
            raise RunError("rehearsal, file: the network that was saved and loaded answers otherwise")
        frame = inputs[:, 0] if recipe.in_time else inputs
        # Of an example only the shape matters; answers are compared on all images.
        written = export(snn, Path(folder) / "snn.pt2", "torch-export", frame[:_COUNTED], [frame])
    if written.decisions:
        raise RunError(f"rehearsal, export: {written.decisions} of {IMAGES} images are classified otherwise")
    many = f"all {IMAGES}" if right == IMAGES else f"{right} of {IMAGES}"
    say(f"the spiking network has {many} images right at T = {last}, and so have its files")
    if recipe.learns_order:
        net = unroll_for(recipe, snn)
        _step("the network through time", net, dataset, recipe, recipe.through_time, say, reader)
        _through_time(net, dataset, recipe, say)


def _through_time(net: TemporalNetwork, dataset: ImageDataset, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Train the converted network on through time, and prove, evaluate and save what comes out; no format exports it."""
    _learn("the network through time", net, dataset, recipe, recipe.through_time, say)
    ((inputs, labels),) = dataset.evaluation(IMAGES, "train")
    proof = verify_temporal(net, [inputs[:_PROVED]])
    if not proof.exact:
        raise RunError(
            f"rehearsal, through time: {proof.different} codes differ between stream and sequence, first at "
            f"{proof.first_difference}"
        )
    say(f"streamed frame by frame at T = {proof.timesteps}: {proof.different} of {proof.compared} codes differ")
    last = recipe.frames.bins
    right = evaluate(net, [(inputs, labels)], last).correct[last]
    if right < IMAGES:
        raise RunError(f"rehearsal, through time: expected {IMAGES} of {IMAGES} right at T = {last}, got {right}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "snn_through_time.safetensors"
        save(net, path)
        if not torch.equal(load(path)(inputs), net(inputs)):
            raise RunError("rehearsal, file: the network through time that was saved and loaded answers otherwise")
    say(
        f"the spiking network through time has all {IMAGES} images right at T = {last}, and so has its file "
        "(no format exports it)"
    )


def random_images(recipe: Recipe) -> ImageDataset:
    """64 random images (sequences) of the shape and the classes of the recipe's dataset, the same for training and test."""
    shape = _shape(recipe)
    bins = recipe.frames.bins if recipe.in_time else 1
    usual = _FOREIGN_SIDE if parents.package_of(recipe.model) else models.describe(recipe.model).image_size
    side = 2 * int(recipe.options["patch"]) if "patch" in recipe.options else usual
    if recipe.options.get("stem") == "imagenet":
        side *= 2  # the stem leaves a quarter of the pixels, of which the last stage needs one
    height, width = min(shape.height, side), min(shape.width, side)
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.randint(256, (IMAGES, bins * shape.channels, height, width), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(shape.classes, (IMAGES,), generator=generator))
    made: dict[str, Any] = {
        "name": recipe.data,
        "train": split,
        "test": split,
        "classes": tuple(f"class {index}" for index in range(shape.classes)),
        "origin": "random numbers",
        "licence": "none needed",
        "normalization": Normalization.of(images.reshape(-1, shape.channels, height, width)),
        "augmentation": Augmentation(),
    }
    return SequenceDataset(**made, bins=bins) if recipe.in_time else ImageDataset(**made)


def _shape(recipe: Recipe) -> data.Shape:
    """Of an image of the recipe's dataset, or of a frame."""
    return data.shape_of(recipe.data, recipe.asked_frames, sequences=recipe.in_time)


def _step(
    what: str,
    model: nn.Module,
    dataset: ImageDataset,
    recipe: Recipe,
    spec: TrainSpec,
    say: Callable[[str], None],
    ann: nn.Module | None = None,
) -> None:
    """One step of a copy of the network as the recipe has it: with its changes of images, precision, teacher and average.

    It is validated where the recipe asks for that: on the same images, of which so few have no share of every class.
    """
    teacher = ann if spec.distillation else None
    # A shift is of images of the full size.
    augmentation = dataclasses.replace(recipe.augmentation, shift=0)
    changed = dataclasses.replace(dataset, train=dataset.train.subset(torch.arange(_FEW)), augmentation=augmentation)
    one = dataclasses.replace(spec, epochs=1, warmup_epochs=0.0)
    beside: dict[str, Any] = {"teacher": teacher, "progress": False}
    if recipe.validation:
        beside["validate"] = changed.evaluation(_FEW, "train")
    history = fit(copy.deepcopy(model), changed.training(_FEW), one, **beside)
    how = f"in {spec.precision}{'' if teacher is None else ' with its teacher'}"
    how += "" if augmentation.is_identity else f" on changed images ({recipe.augmentation})"
    how += ", validated" if recipe.validation else ""
    say(f"{what} has made a step {how}: loss {history.last.loss:.3g}")


def _learn(
    what: str, model: nn.Module, dataset: ImageDataset, recipe: Recipe, spec: TrainSpec, say: Callable[[str], None]
) -> None:
    """Train with the recipe's optimizer, all images in a batch, until all are right."""
    # Few steps: no smoothing, no teacher, no average that would lag behind, no weight on spikes or weights. Images are asked
    # for at T = 1, which has its usual share of the steps also where the recipe leaves it out or makes it rare.
    plain = dataclasses.replace(
        spec, epochs=_ROUND, warmup_epochs=2.0, label_smoothing=0.0, distillation=0.0, averaging=0.0, activity=0.0,
        weight_decay=0.0, precision="fp32", timesteps=tuple(sorted({1, *spec.timesteps})),
        first_share=max(spec.first_share, TrainSpec.first_share),
    )  # fmt: skip
    right = 0
    share = max(0.5, IMAGES / recipe.batch_size)  # rates grow with batches; half of one for many suits these few
    for turn in range(1, _MOST_ROUNDS + 1):
        rate = plain.learning_rate * share / (1 if turn <= 6 else 4)
        history = fit(model, dataset.training(IMAGES), dataclasses.replace(plain, learning_rate=rate), progress=False)
        # After so few steps running averages still hold .9^8, two fifths, of what they began with.
        update_bn(dataset.evaluation(IMAGES, "train"), model)
        last = (dataset.frames or 1) if isinstance(model, TemporalNetwork) else 1
        right = evaluate(model, dataset.evaluation(IMAGES, "train"), last).correct[last]
        if right == IMAGES:
            say(f"{what} has learned {IMAGES} images by heart in {turn * _ROUND} steps, loss {history.last.loss:.3g}")
            return
    raise RunError(
        f"rehearsal, {what}: expected all {IMAGES} random images right after {_MOST_ROUNDS * _ROUND} steps, got {right}; "
        "look at its learning rate, its levels, and whether gradients reach all of it"
    )
