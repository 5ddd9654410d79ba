"""What training did, epoch by epoch, and what a checkpoint tells of it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from polarspike.errors import CheckpointError, PolarspikeWarning
from polarspike.parallel import distributed
from polarspike.runs import RunDirectory

# A network that knows nothing has a loss of ln(classes), below 10; what is beyond this one is no longer learning.
_ABSURD = 1e3


@dataclass(frozen=True)
class Epoch:
    """One finished epoch; ``seconds`` and ``images_per_second`` are of its training, without validation."""

    epoch: int  # from 1
    loss: float  # mean over the samples, while the weights moved
    learning_rate: float  # of the last step
    train_accuracy: float  # fraction, while the weights moved and on augmented images
    validation_accuracy: float | None  # fraction, after the epoch; None without a validation loader
    seconds: float
    images_per_second: float
    spikes_per_neuron: float | None = None  # and image, while the weights moved; None where nothing lowers them


@dataclass(frozen=True)
class History:
    """What :func:`polarspike.fit` did, epoch by epoch."""

    epochs: tuple[Epoch, ...] = ()

    @property
    def last(self) -> Epoch:
        """The last epoch."""
        return self.epochs[-1]

    def __str__(self) -> str:
        lines = [f"{'epoch':>5}  {'loss':>8}  {'rate':>9}  {'train':>7}  {'validation':>10}  {'images/s':>8}"]
        for e in self.epochs:
            held_out = "-" if e.validation_accuracy is None else f"{100 * e.validation_accuracy:.2f}%"
            lines.append(
                f"{e.epoch:>5}  {e.loss:>8.4f}  {e.learning_rate:>9.3g}  {100 * e.train_accuracy:>6.2f}%"
                f"  {held_out:>10}  {e.images_per_second:>8.0f}"
            )
        return "\n".join(lines)


def epochs_of(records: list[dict[str, Any]], run: RunDirectory) -> list[Epoch]:
    """The epochs that a checkpoint tells of.

    Raises:
        CheckpointError: they are not as they should be.
    """
    try:
        return [Epoch(**record) for record in records]
    except TypeError as error:
        raise CheckpointError(
            f"{run.checkpoint_path}: its tensors and its description do not fit together ({error}); remove the file to "
            "train this stage from its start"
        ) from error


def tell_of_absurd(latest: Epoch, history: list[Epoch]) -> None:
    """Warn of the first epoch whose loss no network has that learns."""
    if distributed.is_main() and latest.loss > _ABSURD and all(before.loss <= _ABSURD for before in history):
        warnings.warn(
            f"fit, epoch {latest.epoch}: expected a mean loss of the order of ln(classes), got {latest.loss:.3g}: training "
            "diverges; stop it, and lower TrainSpec.learning_rate or lengthen warmup_epochs",
            PolarspikeWarning,
            stacklevel=3,
        )
