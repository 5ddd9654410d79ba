"""What quantization would do to a model: which signals spike, with which levels and why, and what stays analog."""

from __future__ import annotations

from dataclasses import dataclass

from polarspike.specs import SiteSpec


@dataclass(frozen=True)
class PlannedSite:
    """One row of a plan: a site, what it replaces or follows, what it gets, and why."""

    name: str
    replaces: str
    spec: SiteSpec
    reason: str


@dataclass(frozen=True)
class PlannedOperator:
    """One row of a plan: an operator that is no site.

    Attributes:
        name: of its module, or of its node in the graph.
        kind: what it calls.
        note: what it does with spikes, or why it stays analog.
        operations: multiplications for one sample in the float network: multiply-accumulates of synapses, one for each
            element of an operator that is not affine; 0 for what only moves or adds.
        first: whether these are accumulate-only at T = 1.
        later: whether they are at T > 1.
    """

    name: str
    kind: str
    note: str
    operations: int = 0
    first: bool = True
    later: bool = True


@dataclass(frozen=True)
class Plan:
    """What :func:`polarspike.quantize` would do.

    Attributes:
        sites: what becomes spiking.
        operators: everything else that a signal passes.
        route: how the model was captured, and why so.
    """

    sites: tuple[PlannedSite, ...]
    operators: tuple[PlannedOperator, ...]
    route: str = ""

    @property
    def analog(self) -> tuple[PlannedOperator, ...]:
        """The operators that multiply at some timestep."""
        return tuple(row for row in self.operators if row.operations and not (row.first and row.later))

    def accumulate_share(self, timesteps: int = 1) -> float:
        """The share of the float network's multiplications that spikes turn into additions, at T = 1 or at T > 1."""
        total = sum(row.operations for row in self.operators)
        kept = sum(row.operations for row in self.operators if (row.first if timesteps == 1 else row.later))
        return kept / total if total else 0.0

    def __str__(self) -> str:
        names = [*(site.name for site in self.sites), *(row.name for row in self.operators)]
        width = min(48, max(map(len, names)))
        lines = [f"captured by torch.{self.route}"] if self.route else []
        lines.append(f"{len(self.sites)} sites become spiking:")
        for site in self.sites:
            gain = "learned" if site.spec.learned_gain else f"{site.spec.gain:g}"
            steps = f"{site.spec.channels} steps" if site.spec.channels else "1 step"
            lines.append(
                f"  {site.name:<{width}}  {site.replaces:<10} levels {site.spec.levels}, gain {gain}, {steps}: {site.reason}"
            )
        if not any(site.spec.negative for site in self.sites):
            lines.append("  (no site has negative levels: all are rectified; QuantSpec(signed='all') would give them)")
        lines.append(f"{len(self.operators)} operators stay as they are:")
        lines += [f"  {row.name:<{width}}  {row.kind:<18} {row.note}" for row in self.operators]
        lines.append(
            f"accumulate-only: {self.accumulate_share(1):.1%} of the multiplications at T = 1, "
            f"{self.accumulate_share(2):.1%} at T > 1"
        )
        return "\n".join(lines)
