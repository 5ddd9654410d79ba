"""Where codes are made: a site fires its membrane, or rounds a float signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from polarspike.exporters.aten import Arguments, shape_of
from polarspike.exporters.channels import channel_steps
from polarspike.exporters.emission import Emitter
from polarspike.exporters.signals import Averaged, Codes, Sums, Vector, array_of

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule

#: Behind the first one.
_MOST_CODES = 255


def _site(walk: Lowering, node: fx.Node, given: Arguments) -> Codes:
    name = given["name"]
    neuron, signal, emitter = walk.neurons[name], walk.signals[given["x"]], walk.emitter
    emitter.where = f"site {name!r}"
    negative, positive = neuron.levels
    gain = float(neuron.gain) if negative else 1.0
    low, factor = (0, 1) if gain == 0.0 else (-negative, _whole(gain, emitter))
    axis = neuron.spec.channel_dim % (len(shape_of(node)) + 1)
    step = array_of(neuron.step)
    if isinstance(signal, Codes):
        signal = walk.sums(given["x"])
    if isinstance(signal, Sums):
        signal = walk.sums(given["x"]) or signal
    if positive * factor - low > _MOST_CODES:
        raise emitter.refuse(
            f"levels ({-low}, {positive}){f' with a gain of 1/{factor}' if factor > 1 else ''} need more than the "
            f"{_MOST_CODES + 1} codes of a byte; use fewer levels"
        )
    if isinstance(signal, Averaged) and (step.ndim == 0 or axis == signal.sums.axis):
        averaged = emitter.averaged(signal.sums, signal.shape, signal.windows, step, positive, name)
        if averaged is not None:
            walk.sites[name] = averaged.name
            return averaged if factor == 1 else emitter.stretched(averaged, factor, averaged.step / factor)
    if isinstance(signal, Averaged):
        signal = walk.float(given["x"])
    channels = channel_steps(signal, step, axis) if isinstance(signal, Sums) else None
    if isinstance(signal, Sums) and channels is not None and not _is_scaled_product(signal, step):
        codes = emitter.fired(signal, channels, low, positive, name)
    else:  # steps that no weight of the layer in front can absorb, or a float signal
        codes = emitter.quantized(emitter.analog(signal), step, axis, low, positive, name, ties_up=neuron.dyadic)
    walk.sites[name] = codes.name
    return codes if factor == 1 else emitter.stretched(codes, factor, codes.step / factor)


def _is_scaled_product(sums: Sums, step: Vector) -> bool:
    """Whether products of two signals have factors per channel, for which there is no weight."""
    return any(term.operator == "product" and (step.ndim or term.scale.ndim) for term in sums.terms)


def _whole(gain: float, emitter: Emitter) -> int:
    factor = round(1 / gain)
    if factor < 1 or factor & (factor - 1) or 1 / factor != gain:
        raise emitter.refuse(
            f"a gain of {gain:.4g} is no power of two, so its codes are no whole numbers; use polarspike.snap_gains on the "
            "quantized network, train a little more, and convert again"
        )
    return factor


RULES: dict[str, Rule] = {
    "polarspike::site": _site,
}
