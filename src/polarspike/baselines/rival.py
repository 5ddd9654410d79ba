"""One small interface for every rival: prepare, calibrate, fit, run T steps, count, true latency.

    rival = prepare("cos", model, RivalSpec(levels=4, rehearsal=4), example=x)
    rival.calibrate(batches)                       # thresholds or steps
    rival.fit(loader, TrainSpec(...))              # where the method trains
    network = rival.network()                      # a spiking network: network(x, timesteps=T), polarspike.evaluate
    rival.latency(T)                               # with what a rehearsal costs
    rival.count(batch, timesteps=T)                # integers, as for our own networks

The network's sites, and what stays analog, are those of :func:`polarspike.quantize`: the same for every rival and for us.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx, nn

from polarspike.baselines import quantizers
from polarspike.baselines.counting import count_rival
from polarspike.baselines.methods import METHODS, Method, describe
from polarspike.baselines.settling import SettlingNetwork
from polarspike.baselines.thresholds import set_thresholds
from polarspike.calibration import calibrate
from polarspike.common.checks import is_integer
from polarspike.common.inputs import Inputs
from polarspike.conversion import convert
from polarspike.counting import OperationCounts, count_operations
from polarspike.errors import OperatorError, SpecError
from polarspike.graph.editing import finish
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import meaning_of
from polarspike.quantization import RULES, quantize
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.runs import RunDirectory
from polarspike.sites import Site
from polarspike.specs import QuantSpec, SiteSpec, Spec
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.sequences import Contract, SequenceNetwork
from polarspike.training import History, fit
from polarspike.training_spec import TrainSpec

#: How max pooling of rivals works over time: on sums, by our contract, or on the spikes of each step.
Pooling = Literal["sums", "steps"]
#: Operators whose answers are not negative where their signals are not.
_KEEPING = (Meaning.AVERAGE, Meaning.MAX_POOLING, Meaning.ADD, Meaning.CONCATENATE, Meaning.RESHAPE, Meaning.PAD,
            Meaning.UPSAMPLE, Meaning.DROPOUT)  # fmt: skip


@dataclass(frozen=True)
class RivalSpec(Spec):
    """What a rival is given.

    Args:
        levels: codes of its quantizer, N + P + 1: L + 1 of QCFS, tau + 1 of group neurons, D + 1 of integer LIF. Where a
            site is signed by nature, half of them are negative.
        timesteps: T of direct training.
        rehearsal: steps that SRP and COS run before those that count.
        granularity: one threshold per ``"tensor"`` or ``"channel"``; None as its authors have it.
        pooling: how its max pooling works over time.

    Raises:
        SpecError: a value is out of range.
    """

    levels: int = 4
    timesteps: int = 1
    rehearsal: int = 4
    granularity: Literal["tensor", "channel"] | None = None
    pooling: Pooling = "sums"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("levels", 2), ("timesteps", 1), ("rehearsal", 1)):
            self._require(name, is_integer(getattr(self, name), least), f"an integer of at least {least}")


class Rival:
    """A rival method on one network; :func:`prepare` makes it.

    Attributes:
        method: what it is.
        spec: what it was given.
        qann: the network that is calibrated and trained; None for direct training, which trains ``network()`` itself.
    """

    def __init__(self, method: Method, spec: RivalSpec, qann: QuantizedNetwork) -> None:
        self.method = method
        self.spec = spec
        self._direct: SequenceNetwork | None = None
        self.qann: QuantizedNetwork | None = qann
        if method.family == "direct":
            self._direct, self.qann = self._built(qann), None

    def calibrate(self, batches: Iterable[Any] | Tensor) -> None:
        """Set thresholds or steps, in place, anew where they were set before. Direct training needs none."""
        if self.qann is None:
            return
        quantizers.without_offsets(self.qann)  # a step is that of the levels, which an offset replaces
        if self.method.threshold is not None:
            set_thresholds(self.qann, batches, self.method.threshold)
        else:
            calibrate(self.qann, batches)
        if self.method.name == "lsq+":
            quantizers.with_offsets_everywhere(self.qann)
        elif self.method.name == "pact":
            quantizers.with_clips(self.qann)

    def fit(
        self,
        loader: Iterable[Any],
        spec: TrainSpec,
        *,
        teacher: nn.Module | None = None,
        run: RunDirectory | None = None,
        resume: bool = False,
    ) -> History:
        """Train by the project's own loop: the quantized network, or through time for direct training.

        A method that is trained for several T (:attr:`Method.trained_for`) is so unless ``spec.timesteps`` asks for others.

        Raises:
            SpecError: the method converts a float network as it is.
        """
        trained = self.trained
        if spec.timesteps == (1,):
            spec = dataclasses.replace(spec, timesteps=self.method.trained_for)
        return fit(trained, loader, spec, teacher=teacher, run=run, resume=resume, progress=False)

    @property
    def trained(self) -> nn.Module:
        """What is trained: the quantized network, or the network through time.

        Raises:
            SpecError: the method converts a float network as it is.
        """
        if not self.method.trains:
            raise SpecError(f"{self.method.name}: converts the float network as it is, so there is nothing to fit")
        trained = self._direct if self.qann is None else self.qann
        assert trained is not None
        return trained

    def network(self) -> SequenceNetwork | SettlingNetwork | SpikingNetwork:
        """The spiking network as it stands; of quantizers, their first timestep."""
        if self.qann is None:
            assert self._direct is not None
            return self._direct.eval()
        if self.method.name == "st-bif":
            return SettlingNetwork(self.qann)
        if self.method.build is None and self.method.name != "lsq+":
            return convert(self._plain(self.qann))
        return self._built(self.qann).eval()

    def rehearsing(self, steps: int) -> Rival:
        """The same rival behind a rehearsal of so many steps; it shares what was calibrated and trained."""
        other = copy.copy(self)
        other.spec = dataclasses.replace(self.spec, rehearsal=steps)
        return other

    def latency(self, timesteps: int) -> int:
        """The true latency of an answer after T counted steps."""
        return timesteps + (self.spec.rehearsal if self.method.rehearses else 0)

    def timesteps(self, latency: int) -> int | None:
        """T whose true latency this is; None where a rehearsal leaves none, or the method has one timestep alone."""
        return self.method.timesteps(latency, self.spec.rehearsal)

    def count(self, batch: Any, timesteps: int = 1) -> OperationCounts:
        """Operations of a batch, a rehearsal's among them."""
        network = self.network()
        if isinstance(network, SpikingNetwork):
            return count_operations(network, batch, timesteps)
        return count_rival(network, batch, timesteps)

    def _built(self, qann: QuantizedNetwork) -> SequenceNetwork:
        network = copy.deepcopy(qann.network)
        for name, site in qann.sites().items():
            network.add_submodule(name, self._neuron(name, site))
        if self.method.family == "direct" and self.method.spikes == "signed":
            _bare(network, self.method.name)
        contract: Contract = "all" if self.spec.pooling == "sums" else "means"
        timesteps = self.spec.timesteps if self.method.family == "direct" else 1
        return SequenceNetwork(finish(network), qann.signature, timesteps=timesteps, contract=contract)

    def _neuron(self, name: str, site: PolarityQuantizer) -> nn.Module:
        method = self.method
        if method.family != "direct":
            site.require_calibrated()
        if isinstance(site, quantizers.OffsetQuantizer):
            return quantizers.OffsetNeuron(site)
        assert method.build is not None
        if method.family == "direct":
            levels = {"binary": (0, 1), "signed": (1, 1), "multi": (0, self.spec.levels - 1)}[method.spikes]
            spec = SiteSpec(*levels)
            return method.build(spec, name, self.spec.rehearsal)
        spec = dataclasses.replace(site.spec, positive=1) if method.whole else site.spec
        neuron = method.build(spec, name, self.spec.rehearsal)
        step = site.step.detach()
        neuron.set_step(step * site.spec.positive if method.whole else step)
        return neuron

    def _plain(self, qann: QuantizedNetwork) -> QuantizedNetwork:
        found = copy.deepcopy(qann)
        for name, site in found.sites().items():
            if type(site) is not PolarityQuantizer:
                found.network.add_submodule(name, quantizers.plain(site))
        found.network.recompile()
        return found


def prepare(name: str, model: nn.Module, spec: RivalSpec | None = None, *, example: Inputs) -> Rival:
    """A rival method on a copy of a model, which is left untouched.

    Args:
        name: one of :data:`polarspike.baselines.METHODS`.
        model: the float network; for direct training its weights are where that starts.
        spec: levels, timesteps, rehearsal.
        example: an example input batch.

    Raises:
        SpecError: an unknown name.
        OperatorError: the network has sites that are signed by nature, and the method has no negative spikes; or negative
            spikes of direct training would only ever see rectified values.
    """
    method = describe(name)
    spec = spec or RivalSpec()
    codes = 1 if method.threshold is not None else spec.levels - 1
    granularity = spec.granularity or ("channel" if method.channelwise else "tensor")
    rectified = QuantSpec(0, codes, granularity=granularity, init=method.start)
    probe = quantize(model, dataclasses.replace(rectified, negative=1, signed="by-nature"), example=example)
    signed = [site for site, quantizer in probe.sites().items() if quantizer.spec.negative]
    if signed and not method.signed and method.family != "direct":
        raise OperatorError(
            f"{name}: site {signed[0]!r} is signed by nature, and the method has no negative levels; take a network of "
            f"rectified activations, or one of {', '.join(key for key, known in METHODS.items() if known.signed)}"
        )
    if signed and codes < 2 and method.family != "direct":
        raise OperatorError(
            f"{name}: site {signed[0]!r} is signed by nature, and {spec.levels} levels hold no negative one beside zero and "
            "a positive one; give at least 3"
        )
    half = dataclasses.replace(rectified, negative=max(1, codes // 2), positive=max(1, codes - codes // 2))
    spread = dataclasses.replace(rectified, overrides=dict.fromkeys(signed, half))
    return Rival(method, spec, quantize(model, spread, example=example))


def _bare(network: fx.GraphModule, name: str) -> None:
    """Take away the rectifiers whose sites stand behind an average of theirs: the neuron there is the activation.

    In front of a neuron with negative spikes they would hide one sign. Other neurons keep them, as their sites are those of
    every method.

    Raises:
        OperatorError: something else than sites reads one.
    """
    for node in list(network.graph.nodes):
        if node.op != "call_module" or type(network.get_submodule(str(node.target))) not in RULES:
            continue
        readers = _readers(network, node)
        sites = [reader for reader in readers if _is_site(network, reader)]
        if not sites:
            continue  # no activation of a site: a function of the network
        if len(sites) < len(readers):
            raise OperatorError(
                f"{name}: site {sites[0].target!r} would only see what {node.target!r} has rectified, and never fire a "
                "negative spike; take a network of max pooling, or a method without negative spikes"
            )
        node.replace_all_uses_with(node.all_input_nodes[0])
        network.graph.erase_node(node)


def _readers(network: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """What reads a signal at last, behind operators that keep its sign."""
    found: dict[fx.Node, None] = {}
    front, seen = [node], {node}
    while front:
        for user in front.pop().users:
            if meaning_of(network, user) not in _KEEPING or _is_site(network, user):
                found[user] = None
            elif user not in seen:
                seen.add(user)
                front.append(user)
    return list(found)


def _is_site(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), Site)
