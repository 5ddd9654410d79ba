"""What a quantizer and a neuron have in common: levels, a step that stays positive, a gain that stays in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from polarspike import bounds, ops
from polarspike.errors import CalibrationError, CheckpointError, SpecError
from polarspike.specs import SiteSpec

#: Differences of codes that whole numbers of a byte hold.
_BYTE = 255
#: A fixed gain as it is kept beside the levels, in whole units; this number for a learned one.
_GAIN_UNITS, _LEARNED = 2**30, -1


def dyadic_gains(negative: int, positive: int) -> list[float]:
    """1 and the powers 2^-m with ``N + 2^m P <= 255``: gains of which whole numbers of a byte hold the values.

    >>> dyadic_gains(7, 7)
    [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    """
    return [1.0, *(2.0**-m for m in range(1, 8) if negative + positive * 2**m <= _BYTE)]


class Site(nn.Module):
    """Base of :class:`~polarspike.quantizers.PolarityQuantizer` and :class:`~polarspike.neurons.PolarityNeuron`.

    The step is ``s = bounds.step_from_offset(start, offset)`` with a buffer ``start`` that calibration sets and a parameter
    ``offset`` that training moves (a buffer where the spec says that the step is not learned); the gain is
    ``bounds.bound_gain(raw_gain)``. Both sides of a conversion hold the same three tensors and the same formulas, so their
    steps agree bit for bit in every floating type.

    Args:
        spec: levels, gain, granularity, and the float function that the site stands for.
        name: the site's name, for messages.

    Shapes: ``start`` and ``offset`` are 0-d, or (C,) with one step per channel; ``raw_gain`` is 0-d.
    """

    #: Decaying a step towards zero would drive every code into saturation.
    no_weight_decay = True

    start: Tensor
    bounds: Tensor
    offset: Tensor
    raw_gain: nn.Parameter | None

    def __init__(self, spec: SiteSpec, name: str = "") -> None:
        super().__init__()
        self.spec = spec
        self.name = name
        shape = (spec.channels,) if spec.channels else ()
        self.register_buffer("start", torch.full(shape, torch.nan))
        # Travels with the state, so that a state of other levels or another fixed gain is refused and not read as these.
        self.register_buffer("bounds", self._bounds())
        if spec.learned_step:
            self.offset = nn.Parameter(torch.zeros(shape))
        else:  # no optimizer, nor a caller's requires_grad_, reaches a buffer
            self.register_buffer("offset", torch.zeros(shape))
        self.raw_gain = nn.Parameter(torch.tensor(float(spec.gain))) if spec.learned_gain else None
        self.calibrated = False

    @property
    def _fixed_gain(self) -> int:
        """The gain in whole units, which no change of the floating type rounds; 1 where it plays no part."""
        if self.spec.learned_gain:
            return _LEARNED
        return round(_GAIN_UNITS * (self.spec.gain if self.spec.negative else 1.0))

    def _bounds(self, device: torch.device | None = None) -> Tensor:
        return torch.tensor([*self.levels, self._fixed_gain], dtype=torch.int64, device=device)

    @property
    def step(self) -> Tensor:
        """S > 0, 0-d or (C,), in the units of the signal."""
        return bounds.step_from_offset(self.start, self.offset)

    @property
    def gain(self) -> Tensor | float:
        """G in [0, 1]; a float where it is fixed. It plays no part at a site without negative levels."""
        return self.spec.gain if self.raw_gain is None else bounds.bound_gain(self.raw_gain)

    @property
    def levels(self) -> tuple[int, int]:
        """``(N, P)``."""
        return self.spec.levels

    @property
    def dyadic(self) -> bool:
        """Whether every step is a power of two."""
        mantissa, _ = torch.frexp(self.step.detach())
        return self.calibrated and bool((mantissa == 0.5).all())

    @torch.no_grad()
    def set_step(self, step: Tensor | float) -> None:
        """Start again from this step: it becomes ``start``, and the learned offset returns to zero.

        Raises:
            SpecError: a step is not positive and finite, is below 2^-106, or has the wrong shape.
        """
        value = torch.as_tensor(step, dtype=self.start.dtype, device=self.start.device)
        if value.shape != self.start.shape:
            if value.dim():
                raise SpecError(
                    f"site {self.name!r}: expected a step of shape {tuple(self.start.shape)}, got {tuple(value.shape)}"
                )
            value = value.expand_as(self.start)
        if not bool((torch.isfinite(value) & (value >= bounds.LEAST_START)).all()):
            raise SpecError(
                f"site {self.name!r}: expected positive finite steps of at least {bounds.LEAST_START:.1e}, "
                f"got {value.tolist()}; scale the input, or calibrate on data that reaches this site"
            )
        self.start.copy_(value)
        self.offset.zero_()
        self.calibrated = True

    def adopt(self, other: Site) -> Self:
        """Copy another site's step and gain, bit for bit, with what was learned; return self."""
        self.start = other.start.detach().clone()
        self.bounds = self.bounds.to(other.start.device)
        offset = other.offset.detach().clone()
        learned = self.spec.learned_step
        self.offset = nn.Parameter(offset, requires_grad=other.offset.requires_grad) if learned else offset
        if other.raw_gain is not None:
            self.raw_gain = nn.Parameter(other.raw_gain.detach().clone(), requires_grad=other.raw_gain.requires_grad)
        self.calibrated = other.calibrated
        return self

    def gradient_scale(self, x: Tensor, levels: tuple[int, int]) -> float:
        """The factor on what step and gain learn from ``x``, be it values or spikes: 1 / sqrt(numel * P).

        numel counts the elements of one sample that share a step, not those of the batch, which differs between processes.
        """
        shared = math.prod(x.shape[1:]) // max(1, self.spec.channels)
        return 1.0 / math.sqrt(max(1, shared) * levels[1])

    def broadcast_step(self, x: Tensor) -> Tensor:
        """The step, shaped so that it broadcasts against ``x``, (batch, channels, ...) or (batch, ..., channels)."""
        self.require_calibrated()
        step = self.step
        last = self.spec.channel_dim == -1
        return step.view(-1, *(1,) * (x.dim() - 2)) if self.spec.channels and not last else step

    def require_calibrated(self) -> None:
        """Refuse to compute with a step that nobody has chosen."""
        if not self.calibrated:
            raise CalibrationError(
                f"site {self.name!r} has no step yet; call polarspike.calibrate(qann, batches) "
                "before running, training or converting the network"
            )

    def encode(self, x: Tensor) -> Tensor:
        """The codes of a signal under this site's step and levels; float-typed integers, the shape of ``x``."""
        return ops.encode(x, self.broadcast_step(x), *self.levels)

    def decode(self, codes: Tensor) -> Tensor:
        """The values of codes (batch, channels, ...) under this site's step and gain, in the type of ``codes``."""
        return ops.decode(codes, self.broadcast_step(codes), self.gain if self.spec.negative else 1.0)

    def options(self) -> dict[str, Any]:
        """What a file must hold beside the spec and the tensors, as plain data; :meth:`restored` takes it."""
        return {}

    @classmethod
    def restored(cls, spec: SiteSpec, name: str, options: Mapping[str, Any]) -> Self:
        """A site without its tensors, from what a file says of it.

        Raises:
            CheckpointError: the options are not those of this kind.
        """
        del options
        return cls(spec, name)

    def extra_repr(self) -> str:
        gain = "learned" if self.spec.learned_gain else f"{self.spec.gain:g}"
        step = "per channel" if self.spec.channels else f"{float(self.step.detach()):.4g}"
        fixed = "" if self.spec.learned_step else ", fixed"
        return f"levels={self.levels}, gain={gain}, step={step if self.calibrated else 'not calibrated'}{fixed}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A spec may have been exchanged since the site was made, which says nothing to its buffer.
        destination[f"{prefix}bounds"] = self._bounds(self.bounds.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        held = state_dict.get(f"{prefix}bounds")
        if held is not None:
            *levels, gain = held.tolist() if len(held) > 2 else [*held.tolist(), self._fixed_gain]
            if levels != list(self.levels):
                raise CheckpointError(
                    f"site {self.name!r}: expected a state of levels {self.levels}, got {tuple(levels)}; "
                    "quantize with the spec that the state was made with"
                )
            if gain != self._fixed_gain and self.raw_gain is None and gain != _LEARNED:
                raise CheckpointError(
                    f"site {self.name!r}: expected a state with a fixed gain of {self.spec.gain:g}, got "
                    f"{gain / _GAIN_UNITS:g}; quantize with the spec that the state was made with"
                )
            state_dict[f"{prefix}bounds"] = self._bounds(held.device)  # it may be of two numbers, without the gain
        if self.bounds.shape != (3,):  # of a site that an older release has made
            self.bounds = self._bounds(self.bounds.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.calibrated = bool((torch.isfinite(self.start) & (self.start > 0)).all())


def require_float(model: object, where: str = "", repair: str = "") -> None:
    """Refuse a network that has sites already.

    Raises:
        SpecError: it has; ``where`` stands before the message, ``repair`` behind it.
    """
    if isinstance(model, nn.Module) and any(isinstance(part, Site) for part in model.modules()):
        raise SpecError(f"{where}expected a float model, got {type(model).__name__} with sites already in it{repair}")


def require_exact_codes(verb: str, sites: Mapping[str, Site], timesteps: int) -> None:
    """Refuse so many timesteps that codes leave the integers to which :func:`polarspike.ops.encode` rounds exactly.

    Codes reach ``max(N, P) T`` after T steps, and have to stay below 2^23 in float32, below 2^52 in float64.

    Raises:
        SpecError: they do not at some site.
    """
    for name, site in sites.items():
        kind = torch.promote_types(site.start.dtype, torch.float32)
        digits = 1.0 / torch.finfo(kind).eps
        if (most := max(site.levels) * timesteps) >= digits:
            raise SpecError(
                f"{verb}: site {name!r}: expected codes below {digits:.0f}, from where on {kind} has no room for halves, "
                f"got {max(site.levels)} levels x {timesteps} timesteps = {most}; take fewer of either, or the network "
                "in float64: network.double()"
            )
