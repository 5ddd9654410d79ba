"""Where codes are made: a site fires its membrane, or rounds a float signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from polarspike.exporters.aten import Arguments, shape_of
from polarspike.exporters.emission import Emitter, channel_steps
from polarspike.exporters.signals import Codes, Sums, array_of

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule


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
    products = isinstance(signal, Sums) and any(term.operator == "product" for term in signal.terms)
    if isinstance(signal, Sums) and not (
        products and step.ndim
    ):  # no weight can absorb a step per channel of a product
        codes = emitter.fired(signal, channel_steps(signal, step, axis, emitter), low, positive, name)
    else:
        codes = emitter.quantized(emitter.analog(signal), step, axis, low, positive, name)
    walk.sites[name] = codes.name
    return codes if factor == 1 else emitter.stretched(codes, factor, codes.step / factor)


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
