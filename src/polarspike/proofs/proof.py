"""What a comparison of two networks found: codes compared and different, per site, with the scope of the claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_LEAST_ACTIVE, _MOST_ACTIVE = 0.05, 0.95
_RIVALS = {
    "network": "the refined quantized network",
    "events": "the event simulator",
    "stream": "its own stream, frame by frame",
}

#: What rounding may do to a float32 network at T > 1: the share of codes that differ, and their distance in steps.
ROUNDING_SHARE, ROUNDING_MARGIN = 1e-5, 1e-5


@dataclass(frozen=True)
class SiteComparison:
    """One site: how many codes were compared, how many differ, and whether the comparison says anything.

    Attributes:
        compared: codes compared.
        different: codes that differ although every earlier site held the same codes: the site's own differences.
        diverged: codes that differ when both networks run freely; one difference early moves many codes later.
        different_values: decoded outputs of the site that differ in any bit, both running freely (T = 1 only).
        worst_margin: how far the mean input would have to move for the quantized network to give the spiking network's
            code, in units of the site's step s; the largest over the differing codes.
        distinct: number of different codes k[t] fired, over all timesteps.
        nonzero_share: share of the codes k[t] that are not zero: events per neuron and timestep.
        binary: the site has two levels, so two distinct codes are all that it can show.
    """

    compared: int
    different: int
    diverged: int
    different_values: int
    worst_margin: float
    distinct: int
    nonzero_share: float
    binary: bool

    @property
    def equal(self) -> bool:
        """No code and no value differs."""
        return self.different == 0 and self.diverged == 0 and self.different_values == 0

    @property
    def counts(self) -> bool:
        """Enough different codes, neither nearly all zero nor nearly all not, for equality to mean something."""
        return self.distinct >= (2 if self.binary else 3) and _LEAST_ACTIVE <= self.nonzero_share <= _MOST_ACTIVE


@dataclass(frozen=True)
class Proof:
    """The result of :func:`polarspike.verify`; ``str(proof)`` is a table.

    Attributes:
        timesteps: T.
        against: ``"network"`` or ``"events"``, or ``"stream"`` (of a network that was trained through time).
        sites: the comparison of every site, in the order in which a signal meets them.
        output_difference: the largest absolute difference of the outputs.
        output_equal: the outputs agree: in every bit at T = 1, else to rounding.
        scope: codes that differ when one and the same network runs under other conditions, as (different, compared), or
            why it cannot run so.
        margin: codes this close to a boundary (in steps) may differ; 0 asks for every code.
        note: further figures of the run.
    """

    timesteps: int
    against: str
    sites: Mapping[str, SiteComparison]
    output_difference: float
    output_equal: bool
    scope: Mapping[str, tuple[int, int] | str] = field(default_factory=dict)
    margin: float = 0.0
    note: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Proof:
        """What :meth:`to_dict` wrote; without ``against`` (of an earlier release) it is of a comparison with the network."""
        sites = {
            name: SiteComparison(**{**site, "worst_margin": _read(site["worst_margin"])})
            for name, site in data["sites"].items()
        }
        scope = {name: found if isinstance(found, str) else tuple(found) for name, found in data["scope"].items()}
        against, margin, note = data.get("against", "network"), data.get("margin", 0.0), data.get("note", "")
        equal = data.get("output_equal", data["exact"])
        difference = _read(data["output_difference"])
        return cls(data["timesteps"], against, sites, difference, equal, scope, margin, note)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file, which has no infinity: None stands for it."""
        return {
            "timesteps": self.timesteps,
            "against": self.against,
            "margin": self.margin,
            "note": self.note,
            "exact": self.exact,
            "output_equal": self.output_equal,
            "conclusive": self.conclusive,
            "output_difference": _written(self.output_difference),
            "scope": dict(self.scope),
            "sites": {
                name: {**asdict(site), "worst_margin": _written(site.worst_margin)} for name, site in self.sites.items()
            },
        }

    def __bool__(self) -> bool:
        """As :attr:`exact`: ``assert polarspike.verify(...)`` says what it seems to say."""
        return self.exact

    @property
    def exact(self) -> bool:
        """Every site and the output agree (outside the stated margin, which is 0 between networks)."""
        if not self.sites:
            return False
        if self.margin:
            return self.output_equal and self.worst_margin <= self.margin
        return self.output_equal and all(site.equal for site in self.sites.values())

    @property
    def conclusive(self) -> bool:
        """Every site shows enough codes for the comparison to count."""
        return not self.void

    @property
    def compared(self) -> int:
        """Codes compared at all sites."""
        return sum(site.compared for site in self.sites.values())

    @property
    def different(self) -> int:
        """Codes that differ at all sites, every site on equal earlier codes."""
        return sum(site.different for site in self.sites.values())

    @property
    def diverged(self) -> int:
        """Codes that differ at all sites when both networks run freely."""
        return sum(site.diverged for site in self.sites.values())

    @property
    def worst_margin(self) -> float:
        """Largest distance of a differing code from its boundary, in steps."""
        return max((site.worst_margin for site in self.sites.values()), default=0.0)

    @property
    def within_rounding(self) -> bool:
        """No more differs than float sums may at T > 1: one code, or 1 in 10^5, each within 1e-5 steps of its boundary.

        It is about each site's own differences: running freely, one of them may move many later codes, and the output with
        them. Where none does, the outputs have to agree.
        """
        few = self.different <= max(1, self.compared * ROUNDING_SHARE) and self.worst_margin <= ROUNDING_MARGIN
        return few and (self.output_equal or self.diverged > 0)

    @property
    def void(self) -> tuple[str, ...]:
        """The sites whose comparison does not count."""
        return tuple(name for name, site in self.sites.items() if not site.counts)

    @property
    def first_difference(self) -> str | None:
        """The first site that differs, ``"output"`` if only the output does, None if nothing does."""
        for name, site in self.sites.items():
            if site.different or site.different_values:
                return name
        return None if self.output_equal else "output"

    def __str__(self) -> str:
        lines = [
            f"T={self.timesteps} against {_RIVALS[self.against]}: {self.different} of {self.compared} codes differ"
        ]
        if self.diverged:
            lines[0] += f" ({self.diverged} when both run freely)"
        width = max((len(name) for name in self.sites), default=4)
        for name, site in self.sites.items():
            line = (
                f"  {name:<{width}}  {site.different} of {site.compared} differ, {site.distinct} distinct, "
                f"{site.nonzero_share:.1%} non-zero"
            )
            if site.different:
                line += f"; at most {site.worst_margin:.1e} steps from a boundary"
            if not site.counts:
                line += "; VOID: too few codes to count"
            lines.append(line)
        outputs = "equal" if self.output_equal else f"differ by up to {self.output_difference:.3g}"
        lines.append(f"  outputs {outputs}; first difference: {self.first_difference or 'none'}")
        verdict = "EXACT" if self.exact else "NOT EXACT"
        if not self.exact and self.timesteps > 1 and self.against == "network" and self.within_rounding:
            verdict += " in this precision, but within the rounding of its sums"
        lines.append(f"  {verdict}" + ("" if self.conclusive else ", not conclusive"))
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join([*lines, *(f"  scope: {line}" for line in self.scope_lines())])

    def scope_lines(self) -> list[str]:
        """One line per condition of the scope."""
        return [
            f"{condition}: {found if isinstance(found, str) else f'{found[0]} of {found[1]} codes differ'}"
            for condition, found in self.scope.items()
        ]


def _written(distance: float) -> float | None:
    return distance if math.isfinite(distance) else None


def _read(distance: float | None) -> float:
    return math.inf if distance is None else distance
