"""Other tools, driven through their public interface on the same weights and images.

    spikingjelly-rate        2.0, ``ann2snn.RateCodingRecipe``: settings ``mode``, ``channel_wise``, ``half_threshold``,
                             ``pre_spike_maxpool``
    spikingjelly-balanced    2.0, ``ann2snn.LocalThresholdBalancingRecipe``
    spikingjelly-sta         2.0, ``ann2snn.STATransformerRecipe``, which spikes behind layer norms, GELUs and attention,
                             several times a step and with either sign; the image enters once, and products in the
                             attention stay those of floats: settings ``time_steps``, ``threshold_mode``
    sinabs                   3.1, ``from_model``: settings ``percentile``, ``scale``, ``multi_spike``

The packages belong to the extra ``baselines``; where their requirements clash with yours, give them an environment of
their own and run the same command there. A peer's network is measured by :func:`polarspike.evaluate` like any other: its
spikes are what its own neuron modules put out.

What a tool does not take is a SpecError: what it raises by itself as a ValueError or NotImplementedError while it converts
(SpikingJelly: activations of one dimension, thresholds that are not positive; of both, what torch.fx cannot trace), or what
this page refuses for it. Anything else that goes wrong is an error.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization
from torch.fx.proxy import TraceError

from polarspike.common.inputs import batches_of
from polarspike.common.modules import hooked
from polarspike.errors import InputError, MissingExtraError, PolarspikeError, SpecError
from polarspike.spiking import Observable


class PeerNetwork(Observable):
    """A peer's spiking network behind the interface of ours.

    Args:
        snn: the peer's module; one call is one timestep.
        neurons: its neuron modules by name; they put out numbers of spikes.
        reset: brings it to rest.
        scale: of its input, which its answer is divided by.
        worth: of one spike, by name, of neurons that put out spikes times what they are worth.
        once: the input enters at the first step and zeros follow, and the answer is the sum of the outputs.
    """

    rehearsal = 0

    def __init__(
        self,
        snn: nn.Module,
        neurons: Mapping[str, nn.Module],
        reset: Callable[[nn.Module], None],
        scale: float = 1.0,
        *,
        worth: Mapping[str, Tensor] | None = None,
        once: bool = False,
    ) -> None:
        super().__init__()
        self.snn = snn
        self._neurons = neurons
        self._reset = reset
        self._scale = scale
        self._worth = worth or {}
        self._once = once

    @torch.no_grad()
    def forward(self, x: Tensor, *, timesteps: int = 1, every_step: bool = False) -> Tensor:
        """The mean of the outputs of T steps of the same input, from rest; of an input that enters once, their sum."""
        total = torch.zeros(())
        answers = []
        step = 0

        def see(name: str, output: Tensor) -> None:
            spikes = (output / self._worth[name]).round() if name in self._worth else output
            for observer in self._observers:
                observer(name, step, spikes)

        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: see(name, output))
            for name, module in (self._neurons.items() if self._observers else ())
        ]
        self._reset(self.snn)
        with hooked(handles):
            for step in range(1, timesteps + 1):
                enters = torch.zeros_like(x) if self._once and step > 1 else x * self._scale
                total = total + self.snn(enters) / self._scale
                answers.append(total if self._once else total / step)
        self._reset(self.snn)
        return torch.stack(answers) if every_step else answers[-1]


def version(package: str) -> str:
    """The installed version, for a table.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(package, "baselines") from None


def spikingjelly_rate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    mode: str = "Max",
    channel_wise: bool = False,
    half_threshold: bool = False,
    pre_spike_maxpool: bool = False,
) -> PeerNetwork:
    """SpikingJelly's rate coding; ``mode`` is ``"Max"`` or a percentile such as ``"99.9%"``."""
    ann2snn = _package("spikingjelly", "spikingjelly.activation_based.ann2snn")
    recipe = ann2snn.RateCodingRecipe(
        _pairs(batches),
        mode=mode,
        channel_wise=channel_wise,
        half_threshold=half_threshold,
        pre_spike_maxpool=pre_spike_maxpool,
    )
    return _spikingjelly(ann2snn.Converter(recipe).convert(copy.deepcopy(model).eval()))


def spikingjelly_balanced(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    passes: int = 1,
    images: int | None = None,
    first: int | None = None,
) -> PeerNetwork:
    """SpikingJelly's local threshold balancing: the first so many batches, so many times, in pieces of so many images."""
    ann2snn = _package("spikingjelly", "spikingjelly.activation_based.ann2snn")
    pairs = _pairs(batches)[:first]
    if images is not None:
        pairs = [
            (x[first : first + images], y[first : first + images])
            for x, y in pairs
            for first in range(0, len(x), images)
        ]
    recipe = ann2snn.LocalThresholdBalancingRecipe(pairs * passes)
    return _spikingjelly(ann2snn.Converter(recipe).convert(copy.deepcopy(model).eval()))


def spikingjelly_sta(
    model: nn.Module, batches: Iterable[Any], *, time_steps: int = 32, threshold_mode: str = "mse"
) -> PeerNetwork:
    """SpikingJelly's spatio-temporal approximation, with spikes (``mode="spiking_encoder"``).

    Args:
        model: whose attention is called as ``y, _ = attention(...)``; an index is refused.
        batches: for its thresholds.
        time_steps: that its thresholds are chosen for; a spike is worth 1 / time_steps of a range.
        threshold_mode: ``"mse"`` or ``"max"``.
    """
    ann2snn = _package("spikingjelly", "spikingjelly.activation_based.ann2snn")
    functional = _package("spikingjelly", "spikingjelly.activation_based.functional")
    recipe = ann2snn.STATransformerRecipe(
        _pairs(batches), time_steps=time_steps, mode="spiking_encoder", threshold_mode=threshold_mode
    )
    snn = ann2snn.Converter(recipe).convert(copy.deepcopy(model).eval())
    functional.set_step_mode(snn, "s")
    neurons = {name: part for name, part in snn.named_modules() if hasattr(part, "v_threshold")}
    if not neurons:
        raise SpecError(
            "spikingjelly: nothing was converted; its recipe spikes behind nn.LayerNorm, nn.GELU and attention"
        )
    worth = {name: _tensor_of(part, "v_threshold") for name, part in neurons.items()}
    return PeerNetwork(snn.eval(), neurons, functional.reset_net, worth=worth, once=True)


def sinabs(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    percentile: float | None = None,
    scale: float = 1.0,
    multi_spike: bool = True,
) -> PeerNetwork:
    """Sinabs' ``from_model``, behind ``normalize_weights`` or with inputs and biases enlarged.

    Args:
        model: of nn.ReLU modules.
        batches: for the percentile.
        percentile: of the activations that becomes one spike; None for weights as they are.
        scale: inputs and biases are multiplied by it (``bias_rescaling``), so that every activation is: a spike is then
            worth 1 / scale.
        multi_spike: any number of spikes in a step, or one at most.

    Raises:
        SpecError: with a percentile, a model that is no chain of modules, which the normalization scales one by one.
    """
    package, utils, activation = (_package("sinabs", name) for name in ("sinabs", "sinabs.utils", "sinabs.activation"))
    ann: nn.Module = optimization.fuse(copy.deepcopy(model).eval())
    if percentile is not None:
        ann = _chain(ann)
        weighted = [name for name, part in ann.named_children() if isinstance(part, nn.Conv2d | nn.Linear)]
        rectified = [name for name, part in ann.named_children() if isinstance(part, nn.ReLU)]
        images = torch.cat([inputs for inputs, _ in _pairs(batches)])
        utils.normalize_weights(ann, images, rectified, weighted, percentile)
    spike = activation.MultiSpike if multi_spike else activation.SingleSpike
    made = package.from_model(ann, num_timesteps=1, spike_fn=spike, bias_rescaling=1.0 / scale).spiking_model
    neurons = {name: part for name, part in made.named_modules() if isinstance(part, package.layers.StatefulLayer)}
    if not neurons:
        raise SpecError("sinabs: nothing was converted; from_model replaces nn.ReLU modules")
    return PeerNetwork(made, neurons, utils.reset_states, scale)


@dataclass(frozen=True)
class Peer:
    """A tool's way of conversion.

    Attributes:
        package: on PyPI.
        title: for tables.
        convert: its function of this module.
        tested: the version whose results the tables hold; where none is installed, they are what is asked for.
        settings: what was searched for its best setting.
        edges: those at which the search ends although it could go on: the best may lie beyond.
        spikes: of one step: ``"binary"``, or ``"multi"`` for more than one.
    """

    package: str
    title: str
    convert: Callable[..., PeerNetwork]
    tested: str
    settings: tuple[dict[str, Any], ...] = ({},)
    edges: tuple[dict[str, Any], ...] = ()
    spikes: Literal["binary", "multi"] = "binary"

    def asked(self) -> dict[str, Any]:
        """What a result depends on beside the network: what is searched, and the version that is here."""
        try:
            found = version(self.package)
        except MissingExtraError:
            found = self.tested
        return {"settings": list(self.settings), "version": found}


_RATE_MODES = ("Max", "99.9%", "99%", "97%", "95%", "90%", "80%")
_FIRING_EARLY = {"channel_wise": True, "half_threshold": True}
#: How SpikingJelly's rate coding is searched: as it is by default, firing early, and so with pooling before the neurons.
_RATE_RULES: tuple[dict[str, bool], ...] = ({}, _FIRING_EARLY, {**_FIRING_EARLY, "pre_spike_maxpool": True})
_STA_STEPS = (1, 2, 4, 8, 16, 32)

PEERS: dict[str, Peer] = {
    "spikingjelly-rate": Peer(
        "spikingjelly",
        "SpikingJelly, rate coding",
        spikingjelly_rate,
        "2.0.0",
        tuple({"mode": mode, **how} for how in _RATE_RULES for mode in _RATE_MODES),
        # Lower quantiles could go on; the largest value is the end.
        tuple({"mode": _RATE_MODES[-1], **how} for how in _RATE_RULES),
    ),
    "spikingjelly-balanced": Peer(
        "spikingjelly",
        "SpikingJelly, threshold balancing",
        spikingjelly_balanced,
        "2.0.0",
        # In order of how often it updates: on the comparison's eight batches of calibration 4 to 800 times.
        ({"first": 4}, {}, {"passes": 2}, {"passes": 4}, {"images": 25}, {"passes": 10, "images": 25}),
        ({"first": 4}, {"passes": 10, "images": 25}),
    ),
    "spikingjelly-sta": Peer(
        "spikingjelly",
        "SpikingJelly, spatio-temporal approximation",
        spikingjelly_sta,
        "2.0.0",
        tuple({"time_steps": t, "threshold_mode": mode} for mode in ("mse", "max") for t in _STA_STEPS),
        tuple({"time_steps": _STA_STEPS[-1], "threshold_mode": mode} for mode in ("mse", "max")),
        spikes="multi",
    ),
    "sinabs": Peer(
        "sinabs",
        "Sinabs",
        sinabs,
        "3.1.3",
        tuple({"percentile": p} for p in (99.0, 99.9, 100.0)) + tuple({"scale": 2.0**s} for s in range(7)),
        ({"percentile": 99.0}, {"scale": 1.0}, {"scale": 64.0}),
        spikes="multi",
    ),
}


def convert_with(peer: str, model: nn.Module, batches: Iterable[Any], **settings: Any) -> PeerNetwork:
    """A model converted by another tool.

    Args:
        peer: one of :data:`PEERS`.
        model: left untouched.
        batches: for its calibration.
        **settings: of its conversion; ``PEERS[peer].settings`` lists what is searched.

    Raises:
        SpecError: an unknown peer, or a model that it does not take.
        MissingExtraError: it is not installed.
    """
    if peer not in PEERS:
        raise SpecError(f"unknown peer {peer!r}; known: {', '.join(PEERS)}")
    package = PEERS[peer].package
    version(package)
    try:
        return PEERS[peer].convert(model, batches, **settings)
    except PolarspikeError:
        raise
    except (ValueError, NotImplementedError) as error:
        if not _is_refusal(error, package):
            raise
        raise SpecError(f"{package}: {type(error).__name__}: {error}") from error


def _is_refusal(error: Exception, package: str) -> bool:
    """Whether a tool said so by itself: raised in its own code, or by the tracing that it stands on.

    A name that it does not know any more, a missing module or no memory says nothing of the model.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, TraceError) or frame.f_globals["__name__"].split(".")[0] == package


def _package(distribution: str, module: str) -> Any:
    version(distribution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer's import warns of is not ours to repair
        return importlib.import_module(module)


def _pairs(batches: Iterable[Any]) -> list[tuple[Tensor, Any]]:
    found = []
    for inputs, target in batches_of(batches):
        if not isinstance(inputs, Tensor):
            raise InputError(f"peers: expected batches of one tensor, got {type(inputs).__name__}")
        found.append((inputs, torch.zeros(len(inputs)) if target is None else target))
    return found


def _spikingjelly(snn: nn.Module) -> PeerNetwork:
    base = _package("spikingjelly", "spikingjelly.activation_based.neuron").BaseNode
    neurons = {name: part for name, part in snn.named_modules() if isinstance(part, base)}
    if not neurons:
        raise SpecError("spikingjelly: nothing was converted; its recipes replace nn.ReLU modules")
    return PeerNetwork(
        snn.eval(), neurons, _package("spikingjelly", "spikingjelly.activation_based.functional").reset_net
    )


def _tensor_of(part: nn.Module, name: str) -> Tensor:
    value = getattr(part, name)
    assert isinstance(value, Tensor)
    return value


def _chain(ann: nn.Module) -> nn.Sequential:
    """A traced network as one sequence of modules."""
    assert isinstance(ann, fx.GraphModule)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for node in ann.graph.nodes:
        if len(node.users) > 1 or len(node.all_input_nodes) > 1:
            raise SpecError(
                f"sinabs: normalize_weights scales a chain of modules, and {node.name!r} is a branch of this model; "
                "give scale in place of percentile"
            )
        if node.op == "call_module":
            parts[node.name] = ann.get_submodule(str(node.target))
        elif node.op == "call_function" and node.target is torch.flatten:
            parts[node.name] = nn.Flatten(*node.args[1:])
        elif node.op not in ("placeholder", "output"):
            raise SpecError(f"sinabs: normalize_weights scales modules, got {node.format_node()}")
    return nn.Sequential(parts)
