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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from polarspike import data, distributed, models
from polarspike.calibration import calibrate
from polarspike.checkpoint import save
from polarspike.conversion import convert
from polarspike.counting import OperationCounts, count_operations
from polarspike.data import AnyDataset, Split
from polarspike.data.streamed import StreamedDataset
from polarspike.energy import CostTable, EnergyEstimate, estimate_energy
from polarspike.equivalence import verify
from polarspike.errors import RunError, SpecError
from polarspike.evaluation import Evaluation, evaluate
from polarspike.files import replacing
from polarspike.modules import device_of
from polarspike.proof import Proof
from polarspike.quantization import quantize
from polarspike.quantized import QuantizedNetwork
from polarspike.runs import RunDirectory
from polarspike.specs import QuantSpec, Spec, TrainSpec
from polarspike.spiking import SpikingNetwork
from polarspike.training import fit

_TEST_BATCH = 256
_FINGERPRINT_IMAGES = 32


@dataclass(frozen=True)
class Recipe(Spec):
    """One experiment as plain values.

    Args:
        data: a dataset of :mod:`polarspike.data`.
        model: a network of :mod:`polarspike.models`.
        width: channels of its first layer, None for its own default.
        options: of the network beside its width, by name.
        batch_size: of training.
        ann: how the float network is trained.
        quant: which codes the sites get.
        qann: how the quantized network is fine-tuned; the control continues with the same.
        timesteps: the T that are evaluated; each is verified, too.
        augment: the dataset's usual augmentation in training.
        calibration_images: training images, without augmentation, that choose the steps.
        proof_images: test images on which codes are compared.
        seed: of the initial weights.
        workers: processes that make training batches ahead, and all batches of pictures that are decoded meanwhile.
    """

    data: str = "fashion-mnist"
    model: str = "resnet20"
    width: int | None = None
    options: Mapping[str, int | str] = field(default_factory=dict)
    batch_size: int = 128
    ann: TrainSpec = field(default_factory=TrainSpec)
    quant: QuantSpec = field(default_factory=QuantSpec)
    qann: TrainSpec = field(default_factory=TrainSpec)
    timesteps: tuple[int, ...] = (1, 2, 4, 8)
    augment: bool = True
    calibration_images: int = 2048
    proof_images: int = 256
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "calibration_images", "proof_images"):
            self._require(name, getattr(self, name) >= 1, "an integer of at least 1")
        self._require("workers", self.workers >= 0, "an integer of at least 0")
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
            "timesteps": tuple,
        }
        return kinds[name](value) if name in kinds else value


@dataclass(frozen=True)
class Outcome:
    """What an experiment found; ``str(outcome)`` is the table that the command line prints."""

    ann: Evaluation
    qann: Evaluation
    snn: Evaluation
    proofs: tuple[Proof, ...]
    counts: OperationCounts
    energy: EnergyEstimate
    network: SpikingNetwork

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return {
            "ann": self.ann.to_dict(),
            "qann": self.qann.to_dict(),
            "snn": self.snn.to_dict(),
            "proofs": [
                {
                    "timesteps": proof.timesteps,
                    "exact": proof.exact,
                    "conclusive": proof.conclusive,
                    "output_difference": proof.output_difference,
                    "scope": dict(proof.scope),
                    "sites": {name: asdict(site) for name, site in proof.sites.items()},
                }
                for proof in self.proofs
            ],
            "counts": self.counts.to_dict(),
            "energy": self.energy.to_dict(),
        }

    def __str__(self) -> str:
        header = f"{'network':<10} {'T':>3} {'accuracy':>9} {'codes compared':>15} {'different':>10} {'events':>8} " + (
            f"{'spikes':>8} {'positive':>9} {'negative':>9}"
        )
        lines = [
            header,
            f"{'ANN':<10} {'':>3} {self.ann.accuracy[1]:>9.2%}",
            f"{'QANN':<10} {'':>3} {self.qann.accuracy[1]:>9.2%}",
        ]
        firing = self.snn.firing or {}
        for proof in self.proofs:
            t = proof.timesteps
            shown = firing[t]
            lines.append(
                f"{'SNN':<10} {t:>3} {self.snn.accuracy[t]:>9.2%} {proof.compared:>15} {proof.different:>10} "
                f"{shown.events_per_neuron:>8.3f} {shown.spikes_per_neuron:>8.3f} "
                f"{shown.positive_spikes_per_neuron:>9.3f} {shown.negative_spikes_per_neuron:>9.3f}"
            )
        lines.append(f"({self.snn.total} test images; events and spikes per neuron and image, up to T)")
        for proof in self.proofs:
            if proof.different:
                lines.append(
                    f"T={proof.timesteps}: each difference lies within {proof.worst_margin:.1e} steps of a boundary "
                    f"(float32 sums); {proof.diverged} codes differ when both networks run freely"
                )
            if proof.void:
                lines.append(
                    f"T={proof.timesteps}: VOID at {', '.join(proof.void)}: too few different codes, or events"
                )
        lines += [f"T=1, one network under other conditions: {line}" for line in self.proofs[0].scope_lines()]
        return "\n".join([*lines, "", str(self.energy)])


@dataclass(frozen=True)
class Prepared:
    """An experiment whose data are loaded and whose network is built: what could not work was refused by now."""

    recipe: Recipe
    dataset: AnyDataset
    ann: nn.Module
    device: str


def prepare(recipe: Recipe, *, root: str | None = None, download: bool = False, device: str = "cpu") -> Prepared:
    """Load the data and build the network, before there is a run directory that a wrong name would leave behind.

    Args:
        recipe: the experiment.
        root: the folder of the dataset's files, where it is not the usual one.
        download: allow the dataset to be downloaded.
        device: where to train and evaluate.

    Raises:
        SpecError: an unknown model, option or device, or a batch that is larger than the dataset.
        DataError: the dataset is unknown, missing or damaged.
    """
    with distributed.together():
        require_device(device)
        models.describe(recipe.model)
    dataset = load_dataset(recipe.data, root, download=download)
    with distributed.together():
        if recipe.batch_size > dataset.count("train"):
            raise SpecError(
                f"batch_size: expected at most {dataset.count('train')} ({dataset.name}), got {recipe.batch_size}"
            )
        if recipe.proof_images > dataset.count("test"):
            raise SpecError(
                f"proof_images: expected at most {dataset.count('test')} ({dataset.name}), got {recipe.proof_images}"
            )
        torch.manual_seed(recipe.seed)
        return Prepared(recipe, dataset, build_model(dataset, recipe), device)


def load_dataset(name: str, root: str | None = None, *, download: bool = False) -> AnyDataset:
    """A data set, read by the main process first: what it fetches or keeps, the others find.

    Raises:
        DataError: as for :func:`polarspike.data.load`.
    """
    for turn in (True, False):
        with distributed.together():
            if distributed.is_main() == turn:
                dataset = data.load(name, root, download=download)
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
    )
    train, test, calibration = _loaders(dataset, recipe)
    ann = prepared.ann.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    say(f"train the ANN: {recipe.model} on {recipe.data}, {recipe.ann.epochs} epochs")
    fit(ann, train, recipe.ann, run=run.stage("ann"), resume=run.resume)
    say(f"quantize and calibrate ({recipe.quant.init})")
    qann = quantize_for(recipe, dataset, ann, calibration)
    teacher = copy.deepcopy(ann) if recipe.qann.distillation else None
    say(f"fine-tune the quantized network, {recipe.qann.epochs} epochs")
    fit(qann, train, recipe.qann, teacher=teacher, run=run.stage("qann"), resume=run.resume)
    say(f"continue the ANN for the same {recipe.qann.epochs} epochs")
    control = dataclasses.replace(recipe.qann, activity=0.0)  # it has no spikes to lower
    fit(ann, train, control, teacher=teacher, run=run.stage("control"), resume=run.resume)

    say("convert, verify and evaluate")
    snn = convert(qann)
    outcome = examine(ann, qann, snn, test, _proof_batches(dataset, recipe), recipe.timesteps)
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


def quantize_for(recipe: Recipe, dataset: AnyDataset, ann: nn.Module, calibration: Iterable[Any]) -> QuantizedNetwork:
    """The calibrated quantized network of a trained ANN, with what a user of its file must know in ``notes``."""
    device = next(ann.parameters()).device
    example, _ = next(iter(calibration))
    qann = quantize(ann, recipe.quant, example=example[:2].to(device))
    calibrate(qann, calibration)
    qann.notes = {
        "data": dataset.name,
        "normalization": dataset.normalization.to_dict(),
        "classes": list(dataset.classes),
        "model": recipe.model,
    }
    return qann


def examine(
    ann: nn.Module,
    qann: QuantizedNetwork,
    snn: SpikingNetwork,
    test: Iterable[Any],
    proof_batches: Sequence[Any],
    timesteps: Sequence[int],
) -> Outcome:
    """Evaluate the three networks on the whole test set, verify the conversion, count and price the first proof batch."""
    images, _ = proof_batches[0]
    counts = count_operations(snn, images.to(device_of(snn)))
    return Outcome(
        ann=evaluate(ann, test, progress=True),
        qann=evaluate(qann, test, progress=True),
        snn=evaluate(snn, test, timesteps, progress=True),
        proofs=tuple(verify(qann, snn, proof_batches, timesteps=t) for t in timesteps),
        counts=counts,
        energy=estimate_energy(counts, CostTable.cmos45()),
        network=snn,
    )


def build_model(dataset: AnyDataset, recipe: Recipe) -> nn.Module:
    """The recipe's network for the images of a dataset, with fresh weights from torch's global generator."""
    options: dict[str, Any] = {**recipe.options, **({} if recipe.width is None else {"width": recipe.width})}
    if models.describe(recipe.model).needs_image_size:
        options["image_size"] = dataset.image_size
    return models.create(recipe.model, num_classes=dataset.num_classes, in_channels=dataset.in_channels, **options)


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


def _loaders(dataset: AnyDataset, recipe: Recipe) -> tuple[Any, Any, Any]:
    """Training (shuffled, augmented), test and calibration batches."""
    # Images in memory have nothing to decode: workers would only copy them.
    ahead: dict[str, Any] = {"workers": recipe.workers} if isinstance(dataset, StreamedDataset) else {}
    return (
        dataset.training(recipe.batch_size, augmented=recipe.augment, workers=recipe.workers),
        dataset.evaluation(_TEST_BATCH, **ahead),
        dataset.evaluation(_TEST_BATCH, "train", images=recipe.calibration_images, seed=recipe.seed, **ahead),
    )


def _proof_batches(dataset: AnyDataset, recipe: Recipe) -> list[Any]:
    """The first ``proof_images`` images of the test part."""
    return list(dataset.evaluation(_TEST_BATCH, images=recipe.proof_images))
