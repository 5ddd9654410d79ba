"""Take away negative levels that do not pay for themselves."""

from __future__ import annotations

import torch

from polarspike.common.checks import is_within
from polarspike.errors import SpecError
from polarspike.quantized import QuantizedNetwork, require_calibrated


@torch.no_grad()
def prune(qann: QuantizedNetwork, gain: float = 0.05) -> tuple[str, ...]:
    """Give every site whose gain is at most ``gain`` the levels (0, P), in place: its negative codes are no longer emitted.

    A negative code is worth ``g s k``: with a gain near zero it costs an event and says nothing. Where the gain is zero
    the answer stays bit for bit what it was; elsewhere it moves by at most ``g s N`` at each neuron of such a site, which a
    further epoch of training makes up for. Steps stay as they are.

    Args:
        qann: calibrated, usually trained with ``gain="learned"``.
        gain: the largest gain that is pruned, in [0, 1); 0 for a change that cannot be seen.

    Returns:
        The names of the pruned sites.

    Raises:
        SpecError: not a quantized network, or a gain out of range.
        CalibrationError: a site has no step.
    """
    require_calibrated("prune", qann)
    if not is_within(gain, 0.0, 1.0) or gain == 1:
        raise SpecError(f"prune: gain: expected a number in [0, 1), got {gain!r}")
    pruned = []
    for name, site in qann.sites().items():
        if site.spec.negative and float(site.gain) <= gain:
            qann.network.set_submodule(name, site.with_fixed_gain(negative=0, gain=1.0))
            pruned.append(name)
    return tuple(pruned)
