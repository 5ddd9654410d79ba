"""What is trained in a comparison, by name: rivals that share a start share the training, and its cost is counted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from polarspike.baselines.comparison import Comparison
from polarspike.baselines.methods import Method

StageKind = Literal["float", "quantized", "direct"]


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: of its directory.
        epochs: its own.
        kind: what a training step computes.
        timesteps: of direct training.
        trained_for: of a quantized network, :attr:`polarspike.TrainSpec.timesteps`.
    """

    name: str
    epochs: int
    kind: StageKind
    timesteps: int = 1
    trained_for: tuple[int, ...] = (1,)


def float_stage(asked: Comparison, seed: int) -> Stage:
    """The float network that a seed's quantized networks start from."""
    return Stage(f"float-{seed}", asked.float_epochs, "float")


def control_stage(asked: Comparison, seed: int, rate: float) -> Stage:
    """The float network with the epochs of fine-tuning on top."""
    return Stage(f"control-{seed}-{rate:g}", asked.epochs, "float")


def own_stage(asked: Comparison, run: Mapping[str, Any], method: Method, rate: float) -> Stage:
    """The training of a method that trains. QCFS, SRP, COS and group neurons share one, as all with the same start do."""
    seed, steps, levels = run["seed"], run["trained_steps"], run["levels"] or 0
    if method.family != "direct":
        what = method.name if method.name in ("lsq+", "pact") else f"quantized-{method.start}"
        if method.trained_for != (1,):
            what += "-for-" + "-".join(map(str, method.trained_for))
        name = f"{what}-{levels}-{seed}-{rate:g}".replace("+", "plus")
        return Stage(name, asked.epochs, "quantized", trained_for=method.trained_for)
    epochs = asked.float_epochs + asked.epochs
    if run["budget"] == "time":
        epochs = max(1, -(-epochs // steps))
    name = f"{method.name}-{steps}-{run['budget']}-{levels}-{seed}-{rate:g}"
    if steps > 1 and asked.pooling != Comparison.pooling:  # it is trained through its own max pooling over time
        name += f"-{asked.pooling}"
    return Stage(name, epochs, "direct", steps)


def stages_of(asked: Comparison, run: Mapping[str, Any], method: Method | None) -> list[Stage]:
    """All that a run needs, in order; ``method`` is None for the float network and other tools."""
    seed = run["seed"]
    shared = [float_stage(asked, seed), *(control_stage(asked, seed, rate) for rate in asked.rates)]
    if method is None or not method.trains:
        return shared
    rates = asked.direct_rates if method.family == "direct" else asked.rates
    return [*shared, *(own_stage(asked, run, method, rate) for rate in rates)]


def steps_read(asked: Comparison, method: Method, trained_steps: int = 1, rehearsal: int = 1) -> dict[int, int]:
    """True latency -> T of the answers that are read, behind a rehearsal of so many steps where there is one.

    No further than a sequence goes; of direct training up to four times its T, beyond which nothing was trained for it.
    """
    reach = asked.frames or max(asked.latencies)
    if method.family == "direct":
        reach = min(reach, 4 * trained_steps)
    steps = {latency: method.timesteps(latency, rehearsal) for latency in asked.latencies}
    return {latency: T for latency, T in steps.items() if T is not None and reach >= T}
