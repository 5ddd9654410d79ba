"""Rows in the making: what does not change over time, and the sums of the steps so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polarspike.counting.connections import Links
from polarspike.counting.rows import Kind, SiteCounts, SynapseCounts
from polarspike.counting.streams import Stream
from polarspike.errors import InputError
from polarspike.neurons import PolarityNeuron


def has_second_scale(site: PolarityNeuron) -> bool:
    """Whether a site's negative spikes have a value of their own: N > 0 and a gain other than 0 and 1."""
    return site.spec.negative > 0 and float(site.gain) not in (0.0, 1.0)


@dataclass
class SynapseSubtotal:
    """A row of :class:`~polarspike.counting.SynapseCounts`.

    Attributes:
        reason: why graded values arrive; None for spikes.
        sources: the sites of the spikes. scaled: of these, how many have a second scale.
    """

    name: str
    kind: Kind
    weighted: bool
    connections: int
    outputs: int
    reason: str | None
    static: bool
    sources: Collection[str]
    scaled: int
    sums: Counter[str] = field(default_factory=Counter)
    largest: int = 0

    def arrive(self, streams: Iterable[Stream], links: Links, scaled: Collection[str]) -> None:
        """Add the spikes of one step, and the connections that they cross.

        Args:
            streams: what arrives.
            links: the fan-out of their elements.
            scaled: the sites with a second scale.
        """
        for stream in streams:
            spikes = stream.spikes
            events, size = spikes != 0, spikes.abs()
            self.sums["events_in"] += int(events.sum())
            self.sums["spikes_in"] += int(size.sum(dtype=torch.int64))
            self.cross(events, size, links)
            if size.numel():
                self.largest = max(self.largest, int(size.amax()))
            if stream.before is not None and not stream.sources.isdisjoint(scaled):
                self.sums["second_scale_acs"] += links.count(stream.now * stream.before < 0)

    def cross(self, events: Tensor, size: Tensor, links: Links) -> None:
        """Add connections crossed, without an arrival."""
        self.sums["acs_by_event"] += links.count(events)
        self.sums["acs_by_spike"] += links.count(size)

    def row(self, sites: Mapping[str, SiteSubtotal], timesteps: int) -> SynapseCounts:
        """The finished row."""
        spiking = self.reason is None
        sources = tuple(name for name in sites if name in self.sources)
        within = all(sites[name].site.most_per_step <= 1 for name in sources)
        return SynapseCounts(
            name=self.name,
            kind=self.kind,
            weighted=self.weighted,
            spiking=spiking,
            reason=self.reason or f"spikes of {', '.join(sources)}",
            sources=sources,
            ternary=spiking and within and self.largest <= 1,
            timesteps=timesteps,
            connections=self.connections,
            outputs=self.outputs,
            static=self.static,
            largest=self.largest,
            second_scale_macs=self.scaled * self.outputs * timesteps if spiking else 0,
            **{name: self.sums[name] for name in
               ("events_in", "spikes_in", "acs_by_event", "acs_by_spike", "second_scale_acs")},
        )  # fmt: skip


@dataclass
class SiteSubtotal:
    """A row of :class:`~polarspike.counting.SiteCounts`."""

    site: PolarityNeuron
    fired: Tensor | None = None
    codes: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def fire(self, name: str, before: Tensor | None, now: Tensor) -> None:
        """Add one step: the running codes before it and after it.

        Raises:
            InputError: codes that are no numbers.
        """
        spikes = now if before is None else now - before
        low, high = (float(end) for end in spikes.aminmax())
        if not low > -torch.inf or not high < torch.inf:  # also NaN
            raise InputError(f"site {name!r}: expected finite codes, got NaN or Inf; check the input and the weights")
        counts = torch.bincount((spikes - low).long().flatten())
        self.codes.update({int(low) + place: count for place, count in enumerate(counts.tolist()) if count})
        events = spikes != 0
        self.fired = events if self.fired is None else self.fired | events
        above, below = now.clamp(min=0), now.clamp(max=0)
        was_above = torch.zeros_like(now) if before is None else before.clamp(min=0)
        was_below = torch.zeros_like(now) if before is None else before.clamp(max=0)
        self.sums["take_backs"] += int((was_above - above).clamp_(min=0).sum(dtype=torch.int64))
        self.sums["take_backs"] += int((below - was_below).clamp_(min=0).sum(dtype=torch.int64))
        if has_second_scale(self.site):
            self.sums["second_scale_events"] += int((below != was_below).sum())
        if self.site.spec.negative and float(self.site.gain) == 0.0:
            self.sums["valueless_events"] += int((events & (above == was_above)).sum())

    def row(self, name: str, images: int, timesteps: int, span: int) -> SiteCounts:
        """The finished row."""
        assert self.fired is not None  # made when it fires first
        return SiteCounts(
            site=name,
            levels=self.site.levels,
            most_per_step=self.site.most_per_step,
            gain=float(self.site.gain) if self.site.spec.negative else 1.0,
            neurons=self.fired.numel() // images,
            images=images,
            timesteps=timesteps,
            codes=dict(sorted(self.codes.items())),
            silent=self.fired.numel() - int(self.fired.sum()),
            take_backs=self.sums["take_backs"],
            second_scale_events=self.sums["second_scale_events"],
            valueless_events=self.sums["valueless_events"],
            span=span,
        )
