"""The methods that are compared by name, ours among them: what each is, where it comes from, what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from polarspike.baselines.leaky import IntegerNeuron, LeakyNeuron, TernaryNeuron
from polarspike.baselines.neurons import (
    BinaryNeuron,
    MultiSpikeNeuron,
    OffsetSpikeNeuron,
    ResidualMembraneNeuron,
    SignedMemoryNeuron,
)
from polarspike.baselines.thresholds import Threshold
from polarspike.errors import SpecError
from polarspike.specs import Init, SiteSpec
from polarspike.spiking.sequences import SequenceNeuron

Family = Literal["conversion", "quantization", "direct"]
Spikes = Literal["binary", "signed", "multi"]
#: Builds a neuron from the spec of its site, its name, and the steps of a rehearsal.
Build = Callable[[SiteSpec, str, int], SequenceNeuron]
_SEVERAL = (1, 2, 4, 8)


@dataclass(frozen=True)
class Method:
    """One rival.

    Attributes:
        name: what :func:`polarspike.baselines.prepare` takes.
        title, source: for tables.
        family: ``"conversion"`` of a float or quantized network, ``"quantization"`` (T = 1 alone), or ``"direct"`` training.
        spikes: of one step: ``"binary"`` 0 and 1; ``"signed"`` -1, 0 and 1; ``"multi"`` more than one.
        start: how the step of its quantized network starts.
        threshold: how a training-free threshold is found; None where the quantizer's step is the spike.
        whole: one spike is worth the whole range P s of the quantizer, not one level of it.
        signed: sites whose signal is signed by nature can be held.
        rehearses: it runs a number of steps before those that count.
        channelwise: its authors give every channel a threshold (SNM's give one to every neuron: not done here).
        trained_for: the T for which its quantized network is trained (:attr:`polarspike.TrainSpec.timesteps`); none where
            calibration is all that it gets.
        build: its neuron; None where the spiking network is one of ours: also the first timestep of quantizers, and
            ST-BIF+.
    """

    name: str
    title: str
    source: str
    family: Family
    spikes: Spikes
    start: Init = "mse"
    threshold: Threshold | None = None
    whole: bool = False
    signed: bool = False
    rehearses: bool = False
    channelwise: bool = False
    trained_for: tuple[int, ...] = (1,)
    build: Build | None = None

    @property
    def has_levels(self) -> bool:
        """Whether the number of levels is free."""
        return self.threshold is None and (self.family != "direct" or self.spikes == "multi")

    def timesteps(self, latency: int, rehearsal: int) -> int | None:
        """T whose true latency this is behind so many steps of rehearsal; None where there is none."""
        steps = latency - (rehearsal if self.rehearses else 0)
        return None if steps < 1 or (self.family == "quantization" and steps > 1) else steps

    @property
    def trains(self) -> bool:
        """Whether the method has a training of its own; one without converts the float network as it is."""
        return self.family != "conversion" or (self.threshold is None and bool(self.trained_for))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("polarspike", "PMSM (ours)", "this library", "conversion", "multi", start="mse", signed=True),
        Method("polarspike+t", "PMSM (ours), trained for several T", "this library", "conversion", "multi", start="mse",
               signed=True, trained_for=_SEVERAL),
        Method("polarspike-free", "PMSM (ours), calibrated and not trained", "this library", "conversion", "multi",
               start="mse", signed=True, trained_for=()),
        Method("rate-max", "rate coding, max norm", "Diehl et al., IJCNN 2015", "conversion", "binary",
               threshold="max", whole=True, build=lambda spec, name, _: BinaryNeuron(spec, name, 0.0)),
        Method("rate-percentile", "rate coding, 99.9 % norm", "Rueckauer et al., Front. Neurosci. 2017", "conversion",
               "binary", threshold="percentile", whole=True,
               build=lambda spec, name, _: BinaryNeuron(spec, name, 0.0)),
        Method("balanced", "local threshold balancing", "Bu, Li and Yu, CVPR 2025", "conversion", "binary",
               threshold="balanced", whole=True, channelwise=True,
               build=lambda spec, name, _: BinaryNeuron(spec, name, 0.5)),
        Method("snm", "signed neuron with memory", "Wang et al., IJCAI 2022", "conversion", "signed",
               threshold="max", whole=True, channelwise=True,
               build=lambda spec, name, _: SignedMemoryNeuron(spec, name)),
        Method("qcfs", "QCFS", "Bu et al., ICLR 2022", "conversion", "binary", start="qcfs", whole=True,
               build=lambda spec, name, _: BinaryNeuron(spec, name, 0.5)),
        Method("srp", "SRP", "Hao et al., AAAI 2023", "conversion", "binary", start="qcfs", whole=True, rehearses=True,
               build=lambda spec, name, steps: ResidualMembraneNeuron(spec, name, steps)),
        Method("cos", "COS", "Hao et al., ICLR 2023", "conversion", "binary", start="qcfs", whole=True, rehearses=True,
               build=lambda spec, name, steps: OffsetSpikeNeuron(spec, name, steps)),
        Method("group", "group neurons", "Lv et al., ICASSP 2024", "conversion", "multi", start="qcfs",
               build=lambda spec, name, _: MultiSpikeNeuron(spec, name)),
        Method("scale-and-fire", "scale-and-fire", "arXiv 2510.23383", "conversion", "multi", start="mse",
               build=lambda spec, name, _: MultiSpikeNeuron(spec, name)),
        Method("scale-and-fire+t", "scale-and-fire, trained for several T", "arXiv 2510.23383, with our training",
               "conversion", "multi", start="mse", trained_for=_SEVERAL,
               build=lambda spec, name, _: MultiSpikeNeuron(spec, name)),
        Method("scale-and-fire-free", "scale-and-fire, calibrated and not trained", "arXiv 2510.23383, with our calibration",
               "conversion", "multi", start="mse", trained_for=(),
               build=lambda spec, name, _: MultiSpikeNeuron(spec, name)),
        Method("st-bif", "ST-BIF+", "SpikeZIP-TF, ICML 2024", "conversion", "signed", start="lsq", signed=True),
        Method("lsq", "LSQ", "Esser et al., ICLR 2020", "quantization", "multi", start="lsq", signed=True),
        Method("lsq+", "LSQ+", "Bhalgat et al., CVPRW 2020", "quantization", "multi", start="mse", signed=True),
        Method("pact", "PACT", "Choi et al., 2018", "quantization", "multi", start="percentile"),
        Method("lif", "LIF, surrogate gradient", "Wu et al. 2018; Fang et al. 2021", "direct", "binary",
               build=lambda spec, name, _: LeakyNeuron(spec, name)),
        Method("plif", "PLIF, surrogate gradient", "Fang et al., ICCV 2021", "direct", "binary",
               build=lambda spec, name, _: LeakyNeuron(spec, name, learned=True)),
        Method("ternary", "ternary spikes", "Guo et al., AAAI 2024", "direct", "signed", signed=True,
               build=lambda spec, name, _: TernaryNeuron(spec, name)),
        Method("integer-lif", "integer LIF", "Luo et al. 2024; Yao et al. 2025", "direct", "multi",
               build=lambda spec, name, _: IntegerNeuron(spec, name)),
    )
}  # fmt: skip


def describe(name: str) -> Method:
    """The method of this name.

    Raises:
        SpecError: there is none; the message lists them.
    """
    if name not in METHODS:
        raise SpecError(f"unknown rival {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
