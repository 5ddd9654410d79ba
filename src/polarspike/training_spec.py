"""How networks are trained, as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from polarspike.common.checks import is_integer, is_not_negative, is_positive, is_within
from polarspike.errors import SpecError
from polarspike.specs import Spec

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["sgd", "adamw"]

#: Beyond it a grid is finer than anything that a training step could tell apart.
MOST_TIMESTEPS = 1024


@dataclass(frozen=True)
class TrainSpec(Spec):
    """How :func:`polarspike.fit` trains: one cosine schedule with a linear warm-up.

    Args:
        epochs: passes over the training loader.
        optimizer: ``"sgd"`` (Nesterov momentum) or ``"adamw"``.
        learning_rate: the peak of the schedule.
        momentum: of SGD; ignored by AdamW.
        weight_decay: on weights with two or more dimensions; biases, norms, steps and gains are never decayed.
        warmup_epochs: length of the linear warm-up, in epochs; may be a fraction.
        label_smoothing: of the cross entropy, in [0, 1).
        distillation: weight of the teacher's term in [0, 1]; the labels keep ``1 - distillation``. None is 0.5 with a
            teacher and 0 without; a number above 0 needs a teacher.
        temperature: softens both sides of the distillation term.
        step_rate: the rate at which the steps of sites move, as parts of themselves, under Adam and a cosine without
            warm-up, and learned gains at a tenth of it; the weights wait for them in the first quarter of the warm-up. 0
            leaves them to the optimizer of the weights, with the gradient of learned-step-size quantization as it is.
        averaging: decay of a running average of weights, steps and buffers over the optimizer's steps, in [0, 1); the
            average is what is validated, and what training leaves. 0 for none.
        activity: weight in the loss of the mean number of spikes per neuron and image at T = 1; needs a quantized network.
            Between .02 and .2, most often (docs/results.md).
        timesteps: the T for which a quantized network is trained. Each optimizer step computes what the spiking network
            answers after one of them (:mod:`polarspike.training.refinement`). What is trained for T = 1 alone may lose by
            more timesteps, as Transformers do (docs/results.md).
        first_share: how many of the optimizer steps are those of T = 1, as a share of all, where it is one of several
            T; the others come up equally often.
        accumulation: each batch is computed in so many pieces whose gradients are summed, for less memory; a batch norm sees
            a piece at a time.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for autocast; with the last, the loss is scaled while
            gradients stay finite, and a step whose gradients do not is left out. ``"fp32"`` is what torch is set to: on
            recent GPUs its convolutions round factors to TF32 unless ``torch.backends.cudnn.allow_tf32`` is False.
        sharded: each of several processes keeps a share of the weights, their gradients and the optimizer's states (FSDP),
            for networks that are too large otherwise. The same training, to rounding.
        seed: of the order of the data, the augmentation and dropout; epoch e draws from (seed, e) alone.

    Raises:
        SpecError: a value is out of range.
    """

    epochs: int = 10
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    distillation: float | None = None
    temperature: float = 1.0
    step_rate: float = 0.2
    averaging: float = 0.0
    activity: float = 0.0
    timesteps: tuple[int, ...] = (1,)
    first_share: float = 0.67
    accumulation: int = 1
    precision: Precision = "fp32"
    sharded: bool = False
    seed: int = 0

    def distilling(self, teacher: bool) -> TrainSpec:
        """The same with ``distillation`` decided: 0.5 with a teacher and 0 without, unless a number is given."""
        return self if self.distillation is not None else dataclasses.replace(self, distillation=0.5 * teacher)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("epochs", is_integer(self.epochs, 1), "an integer of at least 1")
        self._require("learning_rate", is_positive(self.learning_rate), "a positive number")
        self._require("momentum", is_within(self.momentum, 0.0, 1.0) and self.momentum < 1.0, "a number in [0, 1)")
        self._require("weight_decay", is_not_negative(self.weight_decay), "a number of at least 0")
        self._require("warmup_epochs", is_within(self.warmup_epochs, 0.0, self.epochs), "a number in [0, epochs]")
        self._require(
            "label_smoothing",
            is_within(self.label_smoothing, 0.0, 1.0) and self.label_smoothing < 1.0,
            "a number in [0, 1)",
        )
        self._require(
            "distillation",
            self.distillation is None or is_within(self.distillation, 0.0, 1.0),
            "a number in [0, 1], or None",
        )
        self._require("temperature", is_positive(self.temperature), "a positive number")
        self._require("step_rate", is_within(self.step_rate, 0.0, 1.0) and self.step_rate < 1.0, "a number in [0, 1)")
        self._require("averaging", is_within(self.averaging, 0.0, 1.0) and self.averaging < 1.0, "a number in [0, 1)")
        self._require("activity", is_not_negative(self.activity), "a number of at least 0")
        self._require(
            "timesteps",
            isinstance(self.timesteps, tuple)
            and bool(self.timesteps)
            and all(is_integer(T) and 1 <= T <= MOST_TIMESTEPS for T in self.timesteps)
            and list(self.timesteps) == sorted(set(self.timesteps)),
            f"increasing integers in 1..{MOST_TIMESTEPS}",
        )
        self._require("first_share", is_within(self.first_share, 0.0, 1.0), "a number in [0, 1]")
        self._require("accumulation", is_integer(self.accumulation, 1), "an integer of at least 1")
        self._require("sharded", isinstance(self.sharded, bool), "True or False")
        if self.sharded and self.precision == "fp16":
            raise SpecError(
                "TrainSpec: sharded=True needs precision 'fp32' or 'bf16', because each process would scale the loss by "
                "what its own share overflows; give precision='bf16'"
            )
        self._require("seed", is_integer(self.seed) and 0 <= self.seed < 2**31, "an integer in 0..2^31-1")

    @classmethod
    def _revive(cls, name: str, value: Any) -> Any:
        return tuple(value) if name == "timesteps" and isinstance(value, list) else value
