"""Frozen, self-validating descriptions of what to do, never of how.

A spec is a dataclass whose values are plain data, so it prints, compares, and travels inside a checkpoint.
``spec.to_dict()`` and ``Spec.from_dict(data)`` are inverse; the dictionary carries the type's name and a version.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from polarspike.common.checks import is_integer, is_positive, is_within
from polarspike.errors import SpecError

Gain = float | Literal["learned"]
Signed = Literal["all", "by-nature", "none"]
Granularity = Literal["tensor", "channel"]
Init = Literal["entropy", "mse", "lsq", "percentile", "qcfs"]
Reading = Literal["integrate", "frames", "channels"]
Neuron = Literal["polarity", "holding"]


@dataclass(frozen=True)
class Spec:
    """Base of all specs: checks its ``Literal`` fields, and turns into and out of a plain dictionary."""

    version: ClassVar[int] = 1
    #: Fields that say how fast something is done, and nothing of what comes out: a run is continued with any values of them.
    indifferent: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for spec_field in dataclasses.fields(self):
            hint = hints[spec_field.name]
            if typing.get_origin(hint) is Literal:
                self._require(spec_field.name, getattr(self, spec_field.name) in typing.get_args(hint),
                              f"one of {', '.join(map(repr, typing.get_args(hint)))}")  # fmt: skip

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise SpecError(f"{type(self).__name__}.{name}: expected {expected}, got {getattr(self, name)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data (JSON-ready) that ``from_dict`` turns back into an equal spec."""
        data: dict[str, Any] = {"type": type(self).__name__, "version": self.version}
        for spec_field in dataclasses.fields(self):
            data[spec_field.name] = _plain(getattr(self, spec_field.name))
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The spec that ``to_dict`` wrote; an unknown field, type or version is a :class:`SpecError`."""
        if data.get("type") != cls.__name__:
            raise SpecError(f"expected the data of a {cls.__name__}, got type {data.get('type')!r}")
        if data.get("version") != cls.version:
            raise SpecError(
                f"{cls.__name__}: expected version {cls.version}, got {data.get('version')!r}; "
                "write the file again with this release, or read it with the release that wrote it"
            )
        values = {key: value for key, value in data.items() if key not in ("type", "version")}
        known = {spec_field.name for spec_field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(f"{cls.__name__}: unknown fields {unknown}; known: {sorted(known)}")
        required = {
            item.name
            for item in dataclasses.fields(cls)
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        }
        if missing := sorted(required - set(values)):
            raise SpecError(f"{cls.__name__}: missing fields {missing}")
        return cls(**{key: cls._revive(key, value) for key, value in values.items()})

    @classmethod
    def completed(cls, data: Any) -> Any:
        """What ``to_dict`` wrote in an older release, with later fields at their defaults; other data as it is."""
        try:
            return cls.from_dict(data).to_dict()
        except (SpecError, AttributeError, TypeError):
            return data

    @classmethod
    def _revive(cls, name: str, value: Any) -> Any:
        """Undo ``_plain`` for one field; a spec with nested specs overrides it."""
        del name
        return value


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class QuantSpec(Spec):
    """Which codes the sites of a network may hold, and where their steps start.

    A site holds codes ``k`` in ``{-N, ..., P}`` with ``N = negative`` and ``P = positive``; the value of a code is
    ``s k`` for ``k >= 0`` and ``g s k`` for ``k < 0`` with the site's step ``s > 0`` and gain ``0 <= g <= 1``.

    What the defaults do, by the operator that a site stands for:

    ======================================  =============================  ==========================================
    operator                                ``signed="by-nature"``         ``signed="all"``
    ======================================  =============================  ==========================================
    ReLU                                    ``(0, P)``                     ``(N, P)``, gain ``gain``
    ReLU6                                   ``(0, P)``, step at most 6/P   ``(N, P)``, gain ``gain``, step at most 6/P
    LeakyReLU of slope ``a``                ``(N, P)``, gain ``a``         ``(N, P)``, gain ``a``
    GELU, SiLU, Hardswish, layer norm       ``(N, P)``, gain 1             ``(N, P)``, gain 1
    residual sum or bottleneck, no ReLU     ``(N, P)``, gain 1             ``(N, P)``, gain 1
    query, key, value of attention          ``(N, P)``, gain 1             ``(N, P)``, gain 1
    attention probabilities, sigmoid        ``(0, P)``                     ``(0, P)``
    ======================================  =============================  ==========================================

    A rectifier becomes a site itself; the others keep their operator, and a site follows it in front of the synapses that
    read it. With ``signed="none"`` every site gets ``(0, P)``, and what is signed by nature is refused because its negative
    side would be lost.
    ``gain="learned"`` makes the gain of every site with negative levels a parameter; it starts at the operator's own
    slope, and at 0.25 where that slope is zero.

    Args:
        negative: N, the number of negative levels, 0 or more.
        positive: P, the number of positive levels, 1 or more.
        gain: the value of a negative spike relative to a positive one, in [0, 1], or ``"learned"``.
        signed: which sites get negative levels.
        granularity: one step per site (``"tensor"``) or per channel (``"channel"``): dimension 1 in front of a
            convolution, the last one in front of a linear layer; operands of products of two signals keep one step.
        init: how :func:`polarspike.calibrate` chooses the steps; ``"mse"`` did best (docs/results.md).
        overrides: site patterns (shell style, e.g. ``"layer1.*"``) to the spec that replaces this one there; the first
            pattern that matches wins.
        inputs: place sites at the network's inputs, too (8-bit pixels are codes already); without, its first layer
            multiplies.

    Raises:
        SpecError: a value is out of range, or two values contradict each other.

    >>> QuantSpec(negative=2, positive=6).levels
    (2, 6)
    """

    negative: int = 7
    positive: int = 7
    gain: Gain = 1.0
    signed: Signed = "by-nature"
    granularity: Granularity = "tensor"
    init: Init = "mse"
    overrides: Mapping[str, QuantSpec] = field(default_factory=dict)
    inputs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("negative", is_integer(self.negative) and 0 <= self.negative <= 2**15, "an integer in 0..32768")
        self._require("positive", is_integer(self.positive) and 1 <= self.positive <= 2**15, "an integer in 1..32768")
        if isinstance(self.gain, str):
            self._require("gain", self.gain == "learned", "a number in [0, 1] or 'learned'")
        else:
            self._require("gain", is_within(self.gain, 0.0, 1.0), "a number in [0, 1] or 'learned'")
        if self.signed == "all" and self.negative == 0:
            raise SpecError(
                "QuantSpec: signed='all' asks for negative levels at every site, but negative=0; "
                "give negative >= 1 or signed='by-nature'"
            )
        if self.gain == "learned" and self.signed == "none":
            raise SpecError(
                "QuantSpec: gain='learned' has nothing to learn with signed='none'; give another of the two"
            )
        if self.gain == "learned" and self.negative == 0:
            raise SpecError("QuantSpec: gain='learned' has nothing to learn with negative=0; give negative >= 1")
        self._require("inputs", isinstance(self.inputs, bool), "True or False")
        self._require("overrides", isinstance(self.overrides, Mapping), "a mapping of site patterns to QuantSpecs")
        object.__setattr__(self, "overrides", dict(self.overrides))  # later changes of the caller's are not ours
        for pattern, spec in self.overrides.items():
            if not isinstance(spec, QuantSpec):
                raise SpecError(f"QuantSpec.overrides[{pattern!r}]: expected a QuantSpec, got {type(spec).__name__}")
            if spec.overrides:
                raise SpecError(
                    f"QuantSpec.overrides[{pattern!r}]: expected a QuantSpec without overrides of its own, got "
                    f"{sorted(spec.overrides)}; name all patterns in the outermost spec, the more special ones first"
                )

    @property
    def levels(self) -> tuple[int, int]:
        """``(N, P)``."""
        return self.negative, self.positive

    def at(self, site: str) -> QuantSpec:
        """The spec that holds at ``site``: the first override whose pattern matches, else this one."""
        for pattern, spec in self.overrides.items():
            if fnmatch.fnmatchcase(site, pattern):
                return spec
        return self

    @classmethod
    def _revive(cls, name: str, value: Any) -> Any:
        if name == "overrides":
            return {pattern: cls.from_dict(data) for pattern, data in value.items()}
        return value


@dataclass(frozen=True)
class SiteSpec(Spec):
    """What one site is: its levels and gain, and the float function that it stands for.

    The float function is ``r(x) = min(x, ceiling)`` for ``x >= 0`` and ``slope * x`` for ``x < 0``; :meth:`QuantSpec.at`
    and the placement rules of :mod:`polarspike.quantization` decide the rest.

    Args:
        negative: N. Zero for a rectified site.
        positive: P.
        gain: where the polarity gain starts, or what it stays.
        learned_gain: the gain is a parameter.
        learned_step: training moves the step; else it stays where it is set (:func:`polarspike.snap_steps`).
        slope: of the float function below zero: 0 for ReLU, the slope of LeakyReLU.
        ceiling: of the float function (ReLU6), or None.
        channels: 0 for one step, else the number of channels that have a step each.
        channel_dim: the dimension of the channels: 1, or -1 for (batch, tokens, channels).
        init: how calibration chooses the step.
    """

    negative: int
    positive: int
    gain: float = 1.0
    learned_gain: bool = False
    learned_step: bool = True
    slope: float = 0.0
    ceiling: float | None = None
    channels: int = 0
    channel_dim: int = 1
    init: Init = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("negative", is_integer(self.negative, 0), "an integer of at least 0")
        self._require("positive", is_integer(self.positive, 1), "an integer of at least 1")
        self._require("gain", is_within(self.gain, 0.0, 1.0), "a number in [0, 1]")
        self._require("learned_step", isinstance(self.learned_step, bool), "True or False")
        self._require("slope", is_within(self.slope, 0.0, 1.0), "a number in [0, 1] (decoding must stay monotone)")
        self._require("ceiling", self.ceiling is None or is_positive(self.ceiling), "a positive number or None")
        self._require("channels", is_integer(self.channels, 0), "an integer of at least 0")
        self._require("channel_dim", self.channel_dim in (1, -1), "1 or -1")

    @property
    def levels(self) -> tuple[int, int]:
        """``(N, P)``."""
        return self.negative, self.positive

    def refined(self, factor: int) -> SiteSpec:
        """The same site with ``factor`` times the levels."""
        return dataclasses.replace(self, negative=self.negative * factor, positive=self.positive * factor)


@dataclass(frozen=True)
class ConvertSpec(Spec):
    """How a spiking network fires, and how it reads a sequence.

    Args:
        reading: ``"integrate"``: the running mean over the frames, which equals the refined network on the mean frame;
            ``"frames"``: every frame is its own first timestep, and the outputs are averaged; ``"channels"``: the frames
            are laid side by side as channels, (batch, time * channels, ...), for one first timestep.
        neuron: ``"polarity"``: T steps refine the grid T-fold; ``"holding"``: the grid stays, and the answer equals the
            quantized network on the mean input at every T.
        max_spikes_per_step: the most spikes of either sign that hardware fires in one step (1: ternary); what is left
            waits, and the network runs on after the last input until nothing waits. None for no limit.
        window: a stream starts again after so many steps of ``step``, and one answer is over no more of them; None for an
            endless running mean.

    Raises:
        SpecError: a value is out of range, or two values contradict each other.
    """

    reading: Reading = "integrate"
    neuron: Neuron = "polarity"
    max_spikes_per_step: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        cap, window = self.max_spikes_per_step, self.window
        self._require("max_spikes_per_step", cap is None or is_integer(cap, 1), "a positive integer or None")
        self._require("window", window is None or is_integer(window, 1), "a positive integer or None")
        if cap is not None and self.neuron != "polarity":
            raise SpecError(
                "ConvertSpec: max_spikes_per_step needs neuron='polarity', because a holding neuron fires about t spikes "
                "where its mean changes by one level; leave one of the two out"
            )
        if cap is not None and self.reading == "frames":
            raise SpecError(
                "ConvertSpec: reading='frames' answers every frame at its first timestep, at which a capped neuron still "
                "holds spikes back; leave out max_spikes_per_step, or use reading='integrate'"
            )

    def require_within_window(self, asker: str, timesteps: int) -> None:
        """Refuse one answer over more steps than a window has, which no stream of this network gives.

        Args:
            asker: the name for the message.
            timesteps: T.

        Raises:
            SpecError: T is above ``window``.
        """
        if self.window is not None and timesteps > self.window:
            raise SpecError(
                f"{asker}: the network starts again after {self.window} steps (ConvertSpec.window), got {timesteps} "
                "timesteps; ask for at most one window, or stream with step"
            )
