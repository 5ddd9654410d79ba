"""One experiment as plain values: what ``polarspike train`` is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from torch import nn

from polarspike import data
from polarspike.common.checks import is_integer, is_share, is_within
from polarspike.data import Augmentation
from polarspike.data.events import FrameSpec
from polarspike.errors import SpecError
from polarspike.experiments import parents
from polarspike.readings import AtOnce, timesteps_of
from polarspike.specs import QuantSpec, Reading, Spec
from polarspike.spiking.through_time import FIRST_LEAK
from polarspike.training_spec import TrainSpec

#: The readings of a conversion, and training through time, which learns the order of the frames.
RecipeReading = Literal[Reading, "through-time"]

# Fields that only training through time reads, and defaults that recipes without it recorded once.
_THROUGH_TIME = ("through_time", "leak", "learned_leak")
_FORMER_LEAKS = (0.9,)


@dataclass(frozen=True)
class Recipe(Spec):
    """One experiment as plain values.

    Args:
        data: a dataset of :mod:`polarspike.data`.
        model: a network of :mod:`polarspike.models`, or timm:NAME or torchvision:NAME.
        weights: a local file of trained weights for it; the float network is then taken as it is, without the training of
            ``ann``. Pixels are normalized and pictures cut as its package says, but scaled by bilinear interpolation to the
            data set's own size, which may cost some tenths of its published accuracy. Nothing is downloaded.
        fresh_head: take from that file all but the last layer, the one that makes the scores, whose classes may be others;
            the float network is then trained as ``ann`` says, from these weights and a last layer of fresh ones.
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
            answers are averaged, or ``"integrate"``, whose mean frame the float network learns, or ``"through-time"``: as
            with ``"frames"``, but then the converted network is trained on, through time, which learns the order of frames.
        through_time: how it is; the ANN continues for as many epochs beside it. For that reading alone.
        leak: what a membrane keeps from one frame to the next when this training begins, in (0, 1].
        learned_leak: each site learns its own.
        validation: the share of every class of the training part that is cut off, the same images for every ``seed``; the
            logs have the accuracy on it after each epoch, so that nothing need be chosen on test images. 0 for none.
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
    fresh_head: bool = False
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
    reading: RecipeReading = "channels"
    through_time: TrainSpec = field(default_factory=TrainSpec)
    leak: float = FIRST_LEAK
    learned_leak: bool = True
    validation: float = 0.0
    calibration_images: int = 2048
    proof_images: int = 256
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "calibration_images", "proof_images"):
            self._require(name, is_integer(getattr(self, name), 1), "an integer of at least 1")
        self._require("validation", is_within(self.validation, 0.0, 1.0) and self.validation < 1, "a share in [0, 1)")
        if self.width is not None and parents.package_of(self.model) is not None:
            raise SpecError(
                f"Recipe.width: expected None for {self.model}, got {self.width}; what its builder takes belongs in "
                "Recipe.options"
            )
        self._require("fresh_head", isinstance(self.fresh_head, bool), "True or False")
        if self.fresh_head and self.weights is None:
            raise SpecError(
                "Recipe.fresh_head: expected a file of weights, whose other layers are taken, got none; give --weights "
                "FILE, or leave it out: without a file all layers are fresh"
            )
        self._require("workers", is_integer(self.workers, 0), "an integer of at least 0")
        if self.augmentation.drop and self._has_pictures:
            raise SpecError(
                f"Recipe.augmentation.drop: expected 0 for {self.data}, which has no events, got {self.augmentation.drop}; "
                f"event datasets are: {', '.join(data.events.names())}"
            )
        if self.in_time and self._has_pictures:
            raise SpecError(
                f"Recipe.reading: expected 'channels' for {self.data}, whose images are no sequences, got {self.reading!r}; "
                f"those of event datasets are: {', '.join(data.events.names())}"
            )
        if self.ann.distillation:
            raise SpecError("Recipe.ann.distillation: the float network has no teacher; give it to qann instead")
        if self.ann.activity:
            raise SpecError("Recipe.ann.activity: the float network has no spikes to lower; give it to qann instead")
        if self.ann.timesteps != (1,):
            raise SpecError("Recipe.ann.timesteps: the float network has no grid to refine; give them to qann instead")
        if self.qann.timesteps != (1,) and self.converted_reading == "frames":
            raise SpecError(
                f"Recipe.qann.timesteps: expected (1,) with reading {self.reading!r}, where every frame is a first timestep "
                f"of its own, got {self.qann.timesteps}; leave them out, or read by 'integrate'"
            )
        self._check_through_time()
        self._require(
            "timesteps",
            bool(self.timesteps) and self.timesteps[0] == 1 and list(self.timesteps) == sorted(set(self.timesteps)),
            "increasing numbers of timesteps that start with 1",
        )

    def _check_through_time(self) -> None:
        self._require("through_time", isinstance(self.through_time, TrainSpec), "a TrainSpec")
        self._require("leak", is_share(self.leak), "a number in (0, 1]")
        self._require("learned_leak", isinstance(self.learned_leak, bool), "True or False")
        if not self.learns_order:
            usual, given = TrainSpec().to_dict(), self.through_time.to_dict()
            asked = {f"through_time.{key}": value for key, value in given.items() if value != usual[key]}
            kind = type(self)
            asked |= {
                key: getattr(self, key) for key in ("leak", "learned_leak") if getattr(self, key) != getattr(kind, key)
            }
            if asked:
                got = ", ".join(f"{key}={value!r}" for key, value in asked.items())
                raise SpecError(
                    f"Recipe.reading: expected 'through-time' with {got}, because nothing else is trained through time, got "
                    f"{self.reading!r}; change one of the two"
                )
            return
        if self.frames.bins < 2:
            raise SpecError(
                f"Recipe.frames.bins: expected at least 2 frames to train through time, got {self.frames.bins}; give "
                "--frames.bins, or another reading"
            )
        if self.through_time.activity:
            raise SpecError(
                "Recipe.through_time.activity: spikes are lowered while the quantized network is trained; give it to qann "
                "instead"
            )
        if self.through_time.timesteps != (1,):
            raise SpecError(
                "Recipe.through_time.timesteps: a network through time answers at every frame, and has no grid to refine; "
                "leave them out"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what only training through time reads where there is none: no later default changes that.

        Nor with a validation or a fresh head where there is none: runs of releases that had none go on.
        """
        data = super().to_dict()
        later = {name for name in ("validation", "fresh_head") if not getattr(self, name)}
        left_out = {*(() if self.learns_order else _THROUGH_TIME), *later}
        return {key: value for key, value in data.items() if key not in left_out}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that ``to_dict`` wrote; an unknown field, type or version is a :class:`SpecError`."""
        if data.get("reading") != "through-time" and data.get("leak") in _FORMER_LEAKS:
            data = {key: value for key, value in data.items() if key != "leak"}
        return super().from_dict(data)

    @classmethod
    def _revive(cls, name: str, value: Any) -> Any:
        kinds: dict[str, Callable[[Any], Any]] = {
            "ann": TrainSpec.from_dict,
            "qann": TrainSpec.from_dict,
            "through_time": TrainSpec.from_dict,
            "quant": QuantSpec.from_dict,
            "augmentation": Augmentation.from_dict,
            "frames": FrameSpec.from_dict,
            "timesteps": tuple,
        }
        return kinds[name](value) if name in kinds else value

    @property
    def asked_frames(self) -> FrameSpec | None:
        """``frames``, or None where they say nothing of images that are none."""
        return None if self._has_pictures and self.frames == FrameSpec() else self.frames

    @property
    def _has_pictures(self) -> bool:
        """Whether the data set is known to hold pictures, and no events."""
        return self.data in data.names() and not data.describe(self.data).events

    @property
    def builder_options(self) -> dict[str, int | str]:
        """What the network's builder is given beside the shape of the images."""
        return {**self.options, **({} if self.width is None else {"width": self.width})}

    @property
    def trains_ann(self) -> bool:
        """Whether the float network is trained first: not where a file has all of its weights."""
        return self.weights is None or self.fresh_head

    @property
    def in_time(self) -> bool:
        """Whether the bins of an event dataset are timesteps."""
        return self.reading != "channels"

    @property
    def learns_order(self) -> bool:
        """Whether the converted network is trained through time."""
        return self.reading == "through-time"

    @property
    def converted_reading(self) -> Reading:
        """How the networks without time, and what is converted from them, read the data."""
        return "frames" if self.reading == "through-time" else self.reading

    @property
    def asked_timesteps(self) -> tuple[int, ...]:
        """The T that are evaluated: of sequences, those that they have."""
        return timesteps_of(self.timesteps, self.frames.bins) if self.in_time else self.timesteps

    def read_by(self, network: nn.Module) -> nn.Module:
        """A network without time as it reads this recipe's data: what is trained and evaluated."""
        return AtOnce(network, self.converted_reading) if self.in_time else network

    def changes(self, usual: Augmentation) -> Augmentation:
        """All random changes in training, from those that are usual for the dataset."""
        return self.augmentation.over(usual) if self.augment else self.augmentation
