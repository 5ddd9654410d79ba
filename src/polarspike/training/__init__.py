"""Training: the ``loop``, what it moves (``course``, ``optimization``), and what it keeps (``state``).

``history`` is what it did, epoch by epoch. ``activity`` makes the number of spikes a quantity to train, ``refinement``
trains for several timesteps, and ``distillation`` needs no labels.
"""

from polarspike.training.history import History
from polarspike.training.loop import fit, training_loss

__all__ = ["History", "fit", "training_loss"]
