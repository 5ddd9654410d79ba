"""What must have been run on a network before a claim about it is decided: named rivals, since none stands for another.

A rival that refuses the network has been asked, and says so for itself alone. Of close relatives one is named: PACT and
LSQ+ are LSQ with another start and an offset, PLIF is LIF with a learned leak, rate coding by maxima is that by quantiles
with the last of them, and group neurons and scale-and-fire are at T = 1 a quantized network of as many levels, as LSQ is
(untrained scale-and-fire is ours there).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

#: Rivals of several spikes a step, at T = 1 and equal levels.
SEVERAL = ("lsq",)
#: Rivals of one spike a step at most that are not trained through time.
SINGLE = ("rate-percentile", "balanced", "snm", "qcfs", "srp", "cos", "st-bif")
#: One for each kind of neuron that is trained through time.
DIRECT = ("lif", "ternary", "integer-lif")
#: The T at which they are trained.
TRAINED_AT = (1, 2, 4)
#: Of direct training at more than one timestep, by column ``budget``.
_BUDGETS = {"epochs": "with all epochs", "time": "in the same time"}


@dataclass(frozen=True)
class Kind:
    """What of a method decides which claim it is held against.

    Attributes:
        family: ``"conversion"``, ``"quantization"`` or ``"direct"``.
        spikes: ``"binary"``, ``"signed"`` or ``"multi"``.
        trains: it has a training of its own.
        tool: it is another tool's.
    """

    family: str
    spikes: str
    trains: bool = True
    tool: bool = False


def not_run(named: Iterable[str], several: bool, kinds: Mapping[str, Kind], asked: Collection[str]) -> str:
    """The first rival that a claim needs and that was not asked; nothing if all were.

    Args:
        named: the methods that it needs, where they are known; and every other tool that is known.
        several: of several spikes a step, or of one.
        kinds: of the rivals that the claim is about, by name.
        asked: names of what has an answer at the last latency of the claim, or refused the network.
    """
    tools = [name for name, kind in kinds.items() if kind.tool and (kind.spikes == "multi") == several]
    lacking = (name for name in (*named, *tools) if name in kinds and name not in asked)
    return next((f"{name} not run" for name in lacking), "")


def untrained_at(
    steps: int, named: Iterable[str], refused: Collection[str], runs: Collection[tuple[str, str, str]]
) -> str:
    """The first training through time that a claim at T needs and that was not run; nothing if all were.

    At one timestep all epochs take the time of one; at several there are two budgets.

    Args:
        steps: T.
        named: the methods that it needs.
        refused: names of those that cannot take the network.
        runs: (method, T of training, budget) of what has an answer after T steps.
    """
    for name in (name for name in named if name not in refused):
        budgets = {budget for method, trained, budget in runs if (method, trained) == (name, str(steps))}
        missing = [
            said for budget, said in _BUDGETS.items() if budget not in budgets and (steps > 1 or budget == "epochs")
        ]
        if missing:
            how = f" {missing[0]}" if budgets else ""
            return f"{name} trained at T = {steps}{how} not run"
    return ""
