"""What an inference needs, measured: events, spikes, joules or bits per image, and what one unit costs at each site."""

from __future__ import annotations

import torch
from torch import Tensor

from polarspike.allocation.candidates import Resource, amount
from polarspike.common.inputs import Inputs, batch_size, to_device
from polarspike.common.modules import apply, device_of, evaluating, hooked
from polarspike.conversion import convert
from polarspike.counting import OperationCounts, count_operations
from polarspike.energy import CostTable, estimate_energy
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer


class Meter:
    """What an inference of the network really needs, and what one unit of each site costs.

    Args:
        qann: calibrated; its levels and steps may change between two measurements.
        batches: inputs, kept.
        resource: what is measured.
        table: prices for joules; 45 nm CMOS unless given.

    Attributes:
        fixed: joules per image of what no choice of levels changes; 0 for the other resources.
        before: the resource per image at the start.
        codes: how often each code from -N to P occurred at every site, as last seen.
    """

    def __init__(
        self, qann: QuantizedNetwork, batches: list[Inputs], resource: Resource, table: CostTable | None
    ) -> None:
        self.qann, self.batches, self.resource = qann, batches, resource
        self.table = table or CostTable.cmos45()
        self.fixed = 0.0
        self._prices: dict[str, float] = {}
        self._second_scales: dict[str, float] = {}
        self.codes: dict[str, Tensor] = {}
        if resource == "joules":
            counts = self._counts()
            row = estimate_energy(counts, self.table).row("b")
            self.fixed = (row.joules - (row.spikes_pj + row.second_scale_pj) * 1e-12) / counts.images
            self._prices = _prices(counts, self.table.add_pj("int8") * 1e-12)
            self._second_scales = _second_scales(counts, self.table.mac_pj("int8") * 1e-12)
            self.before = row.joules / counts.images
            self.see()
        else:
            self.before = self.measure()

    def units(self, name: str) -> float:
        """Cost per image of one event, spike or bit at every neuron of a site."""
        neurons = self._neurons(name)
        return neurons * self._prices.get(name, 0.0) if self.resource == "joules" else neurons

    def second_scale(self, name: str) -> float:
        """Cost per image of a gain other than 0 and 1 at a site with negative levels, beside what fires."""
        return self._second_scales.get(name, 0.0)

    def measure(self) -> float:
        """The resource per image, with every site quantized."""
        if self.resource == "joules":
            counts = self._counts()
            return estimate_energy(counts, self.table).row("b").joules / counts.images
        self.see()
        return sum(self._amount(name, self.resource) for name in self.codes)

    def of(self, name: str) -> tuple[float, float, float]:
        """Events, spikes and bits of one site per image, as last measured."""
        return self._amount(name, "events"), self._amount(name, "spikes"), self._amount(name, "bits")

    def _amount(self, name: str, kind: Resource) -> float:
        counts = self.codes[name]
        negative = self.qann.sites()[name].levels[0]
        shares = (counts / counts.sum()).unsqueeze(0)
        return self._neurons(name) * float(amount(shares, negative, kind))

    def _neurons(self, name: str) -> float:
        return float(self.codes[name].sum()) / self._images

    @property
    def _images(self) -> int:
        return sum(batch_size(inputs, self.qann.signature.shared) for inputs in self.batches)

    def _counts(self) -> OperationCounts:
        return count_operations(convert(self.qann), to_device(self.batches[0], device_of(self.qann)))

    @torch.no_grad()
    def see(self) -> None:
        """Count how often each code occurs at every site, from -N to P, with every site quantized."""
        sites = self.qann.sites()
        found = {name: torch.zeros(sum(site.levels) + 1, dtype=torch.float64) for name, site in sites.items()}

        def look(name: str, site: PolarityQuantizer, x: Tensor) -> None:
            codes = site.encode(x).long().flatten() + site.levels[0]
            found[name] += torch.bincount(codes, minlength=len(found[name])).double().cpu()

        handles = [
            site.register_forward_pre_hook(lambda site, inputs, name=name: look(name, site, inputs[0]))
            for name, site in sites.items()
        ]
        with hooked(handles), evaluating(self.qann):
            for inputs in self.batches:
                apply(self.qann, to_device(inputs, device_of(self.qann)))
        self.codes = found


def _prices(counts: OperationCounts, add: float) -> dict[str, float]:
    """Joules of one unit spike of every site: the connections that it crosses, on average, times an accumulate."""
    prices = {site.site: 0.0 for site in counts.sites}
    neurons = {site.site: site.neurons * site.images for site in counts.sites}
    for row in counts.synapses:
        if row.spiking:
            # Where nothing fires yet, every neuron counts alike.
            elements = max(1, sum(neurons[name] for name in row.sources))
            fan_out = row.acs_by_spike / row.spikes_in if row.spikes_in else row.connections / elements
            for name in row.sources:
                prices[name] += add * fan_out
    return prices


def _second_scales(counts: OperationCounts, mac: float) -> dict[str, float]:
    """Joules per image of a second scale at every site: a multiply-accumulate for every output that its spikes reach."""
    found = {site.site: 0.0 for site in counts.sites}
    for row in counts.synapses:
        if row.spiking:
            for name in row.sources:
                found[name] += mac * row.outputs / counts.images
    return found
