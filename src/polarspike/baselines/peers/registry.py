"""The ways of conversion that are driven, what is searched for the best setting of each, and the errors of all."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.fx.proxy import TraceError

from polarspike.baselines.peers import sinabs, spikingjelly
from polarspike.baselines.peers.network import PeerNetwork
from polarspike.baselines.peers.packages import version
from polarspike.errors import MissingExtraError, PolarspikeError, SpecError


@dataclass(frozen=True)
class Peer:
    """A tool's way of conversion.

    Attributes:
        package: on PyPI.
        title: for tables.
        convert: makes its network of a model and batches.
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
#: Of Sinabs, from rest and from half a threshold; its percentiles lose by far (docs/rivals.md), and are not searched.
_SCALES = {False: (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), True: (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)}
_STA_STEPS = (1, 2, 4, 8, 16, 32)

PEERS: dict[str, Peer] = {
    "spikingjelly-rate": Peer(
        "spikingjelly",
        "SpikingJelly, rate coding",
        spikingjelly.rate_coding,
        "2.0.0",
        tuple({"mode": mode, **how} for how in _RATE_RULES for mode in _RATE_MODES),
        # Lower quantiles could go on; the largest value is the end.
        tuple({"mode": _RATE_MODES[-1], **how} for how in _RATE_RULES),
    ),
    "spikingjelly-balanced": Peer(
        "spikingjelly",
        "SpikingJelly, threshold balancing",
        spikingjelly.threshold_balancing,
        "2.0.0",
        # In order of how often it updates: on the comparison's eight batches of calibration 4 to 800 times.
        ({"first": 4}, {}, {"passes": 2}, {"passes": 4}, {"images": 25}, {"passes": 10, "images": 25}),
        ({"first": 4}, {"passes": 10, "images": 25}),
    ),
    "spikingjelly-sta": Peer(
        "spikingjelly",
        "SpikingJelly, spatio-temporal approximation",
        spikingjelly.spatio_temporal_approximation,
        "2.0.0",
        tuple({"time_steps": t, "threshold_mode": mode} for mode in ("mse", "max") for t in _STA_STEPS),
        tuple({"time_steps": _STA_STEPS[-1], "threshold_mode": mode} for mode in ("mse", "max")),
        spikes="multi",
    ),
    "sinabs": Peer(
        "sinabs",
        "Sinabs",
        sinabs.from_model,
        "3.1.3",
        tuple({"scale": s, "half_threshold": half} for half, scales in _SCALES.items() for s in scales),
        tuple(
            {"scale": s, "half_threshold": half} for half, (first, *_, last) in _SCALES.items() for s in (first, last)
        ),
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
