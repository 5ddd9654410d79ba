"""Gains that whole numbers can hold: zero, or a power of two."""

from __future__ import annotations

import math

import torch

from polarspike.quantized import QuantizedNetwork, require_calibrated

_BYTE = 255


@torch.no_grad()
def snap_gains(qann: QuantizedNetwork) -> dict[str, tuple[float, float]]:
    """Move every gain to the nearest of 0, 1, 1/2, 1/4, ..., in place, and keep it there.

    With a gain of 2^-m a negative code is worth 2^-m of a positive one, so in units of ``2^-m s`` all values of the site are
    whole numbers, and the network can be exported to integer kernels. Powers are as small as a byte allows:
    ``N + 2^m P <= 255``. A gain that goes to 0 takes the negative levels with it, as :func:`polarspike.prune` does. A little
    more training (:func:`polarspike.fit`) makes up for what moved, with the gains fixed.

    Args:
        qann: calibrated, usually trained with ``gain="learned"``.

    Returns:
        For each site whose gain moved or is no longer learned, what it was and what it is.

    Raises:
        SpecError: not a quantized network.
        CalibrationError: a site has no step.
    """
    require_calibrated("snap_gains", qann)
    moved = {}
    for name, site in qann.sites().items():
        negative, positive = site.levels
        gain = float(site.gain)
        if not negative:
            continue
        kept = gain == 0.0 or math.frexp(gain)[0] == 0.5  # a power of two
        near = gain if kept else min(_allowed(negative, positive), key=lambda value: (abs(value - gain), value))
        if near == gain and not site.spec.learned_gain:
            continue
        levels = {"negative": 0, "gain": 1.0} if near == 0.0 else {"gain": near}
        qann.network.set_submodule(name, site.with_fixed_gain(**levels))
        moved[name] = (gain, near)
    return moved


def _allowed(negative: int, positive: int) -> list[float]:
    powers = [2.0**-m for m in range(1, 8) if negative + positive * 2**m <= _BYTE]
    return [0.0, 1.0, *powers]
