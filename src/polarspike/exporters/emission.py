"""Write the instructions of an integer network: sums that fire, and sums that become float."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from polarspike.errors import ExportError
from polarspike.exporters.instructions import Instructions
from polarspike.exporters.signals import Analog, Averaged, Codes, Constant, Moved, Shape, Signal, Sums, Term, Vector
from polarspike.integer import rounding
from polarspike.integer.lattice import LARGEST_SUM, largest_divisor, odd_at_most, odd_fraction
from polarspike.integer.network import Array, laid

_BYTE = 255
#: How many units a step must at least have where sums of a window are whole numbers.
_LEAST_UNITS = 127
#: The largest error, in steps, of codes that enter a sum as they are.
_LITTLE = 1 / 32


class Emitter(Instructions):
    """What becomes of membranes: sums that fire, and sums that become float."""

    # Sums that fire

    def fired(self, sums: Sums, step: Vector, low: int, high: int, name: str) -> Codes:
        """The codes of a membrane at a neuron with these steps: one number, or one per channel of ``sums``."""
        low = max(low, 0) if sums.rectified else low
        terms = sums.terms
        if len(terms) == 1 and terms[0].weighted:
            made = self._synapse(terms[0], terms[0].bias + sums.bias, sums, step, low, high, name)
        elif len(terms) == 1 and terms[0].operator == "product" and not sums.loose_bias.any():
            made = self._product(terms[0], sums, step, low, high, name)
        else:
            made = self._merged(sums, step, low, high, name)
        # The step of the codes is per channel of this layout; the views below take it along.
        codes = Codes(made, step, sums.axis, low, high, sums.shape)
        for view in sums.views:
            codes = cast(Codes, self.viewed(codes, view))
        return codes

    def averaged(
        self, sums: Sums, shape: Shape, windows: Mapping[str, Any], step: Vector, positive: int, name: str
    ) -> Codes | None:
        """The codes of a neuron behind means of rectified sums; None where whole numbers would be too coarse for them.

        The sum W of a window of K is in units of step / (q K), and the neuron fires floor(W / (q K) + 1/2). One sum beyond
        K (P + 1) q saturates it by itself, so a runtime may cut sums off there, and everything behind them stays exact in
        float32: W is at most K^2 (P + 1) q, for which 2^21 leaves a factor of two to a mean that is multiplied by K again.
        """
        (term,) = sums.terms
        count = math.prod(windows["kernel"])
        most = min(largest_divisor(positive) // count, 2**21 // (count**2 * (positive + 1)))
        if most < _LEAST_UNITS or term.sources[0].wide:
            return None
        units = rounding.per_output(cast(Vector, term.weight), term.scale / step)
        bias = np.broadcast_to((term.bias + sums.bias) / step, len(units))
        try:
            made = rounding.averaging(units, bias, term.sources[0].largest, most)
        except ExportError as error:
            raise self.refuse(str(error)) from error
        if made is None:
            return None
        tensors = {"weight": made.weight, "bias": made.bias, "divisor": (count * made.divisor).astype(np.int32)}
        name = self.free(name)
        attributes = {"operator": "convolution", "axis": sums.axis, **term.options, "window": dict(windows)}
        self._add("averaged", [term.sources[0].name], name, attributes, tensors, (0, positive))
        return Codes(name, step, sums.axis, 0, positive, shape)

    def _merged(self, sums: Sums, step: Vector, low: int, high: int, name: str) -> str:
        """Several terms: each synapse on a fine grid of bytes, then one sum of whole numbers.

        The grid has f (odd) lines a step, as fine as the values of the branches on the given batches allow; the sum is in
        units of 1 / (f m), where f m is odd and as large as float32 allows, so that steps of other sites fit well.
        """
        terms = sorted(sums.terms, key=lambda term: term.operator != "identity")  # codes first, as the writers expect
        bias = sums.loose_bias
        spans = [*(self._span(term, step) for term in terms), _ends(bias / step)]
        # A float32 sum is as exact as its largest term, which may lie far beyond the codes.
        most = max(abs(end) for span in spans for end in span)
        largest = largest_divisor(math.ceil(max(abs(low), abs(high), most)))
        branches = [index for index, term in enumerate(terms) if term.operator != "identity"]
        needed = [_useful(index, spans, low, high) for index in branches]
        widest = max((hi - lo for lo, hi in needed), default=1.0)
        if widest > _BYTE:
            raise self.refuse(f"branches of a sum that span {widest:.0f} steps, more than the {_BYTE} of a byte")
        lines = min(odd_at_most(_BYTE / max(widest, _BYTE / largest)), largest) if branches else 1
        multiple = odd_at_most(largest / lines)
        divisor = lines * multiple
        inputs, factors = [], []
        for index, term in enumerate(terms):
            if term.operator == "identity":
                source = term.sources[0]
                exact = divisor * source.step * term.scale / step
                if source.wide and float(np.abs(np.rint(exact) - exact).max()) * source.largest > _LITTLE * divisor:
                    source = self.shrunk(source)
                    exact = divisor * source.step * term.scale / step
                inputs.append(source.name)
                factors.append(np.rint(exact))
                continue
            lo = max(round(needed[branches.index(index)][0] * lines), -_BYTE)
            branch = (lo, lo + _BYTE)
            if term.operator == "product":
                inputs.append(self._product(term, sums, step / lines, *branch, f"{name}_branch"))
            else:
                inputs.append(self._synapse(term, term.bias, sums, step / lines, *branch, f"{name}_branch"))
            factors.append(np.array(float(multiple)))
        tensors = {f"factor{index}": factor.astype(np.int64) for index, factor in enumerate(factors)}
        tensors["bias"] = np.rint(divisor * bias / step).astype(np.int64)
        tensors["divisor"] = np.array(divisor, dtype=np.int64)
        name = self.free(name)
        self._add("combine", inputs, name, {"axis": sums.axis, "dims": len(sums.shape) + 1}, tensors, (low, high))
        return name

    def _span(self, term: Term, step: Vector) -> tuple[float, float]:
        """The smallest and largest value of a term in steps of its neuron."""
        if term.operator != "identity":
            return _ends(np.multiply.outer(np.array(term.seen), 1 / step))
        source = term.sources[0]
        return _ends(np.multiply.outer(np.array([source.low, source.high]), source.step * term.scale / step))

    def _synapse(self, term: Term, bias: Vector, sums: Sums, step: Vector, low: int, high: int, name: str) -> str:
        """A synapse that fires: weights in units of step / q with q odd."""
        most = largest_divisor(max(abs(low), abs(high)))
        term, units = self._with_digits(term, term.scale / step, most)
        source = term.sources[0]
        try:
            made = rounding.firing(
                units, np.broadcast_to(bias / step, len(units)), source.largest, most, wide=source.wide
            )
        except ExportError as error:
            raise self.refuse(str(error)) from error
        tensors: dict[str, Array] = {"weight": made.weight, "bias": made.bias, "divisor": made.divisor.astype(np.int32)}
        return self._weighted(term, sums, tensors, name, (low, high))

    def _product(self, term: Term, sums: Sums, step: Vector, low: int, high: int, name: str) -> str:
        """A product of two signals that fires; no weight can absorb the steps, so they become a fraction r / q."""
        ratio = math.prod(float(source.step) for source in term.sources) * term.scale / step
        factor, divisor = odd_fraction(float(ratio), largest_divisor(max(abs(low), abs(high))))
        name = self.free(name)
        attributes = {"factor": factor, "axis": sums.axis}
        self._add(
            "product", [s.name for s in term.sources], name, attributes, {"divisor": np.array(divisor)}, (low, high)
        )
        return name

    # Sums that become float

    def analog(self, signal: Signal, name: str = "sum") -> Analog:
        """The float value of any signal."""
        if isinstance(signal, Analog):
            return signal
        if isinstance(signal, Constant):
            raise self.refuse("a constant in the place of a signal")
        if isinstance(signal, Moved):
            raise self.unbatched()
        assert not isinstance(signal, Averaged)  # the walk makes them, which knows where their sums are
        if isinstance(signal, Codes):
            return self._decoded(signal, np.ones(()))
        parts = []
        bias = signal.loose_bias
        for term in signal.terms:
            if term.operator == "identity":
                parts.append(self._decoded(term.sources[0], term.scale))
                continue
            label = self.free(name)
            if term.operator == "product":
                scale = math.prod(float(source.step) for source in term.sources) * term.scale
                tensors = {"scale": np.asarray(scale, dtype=np.float32)}
                self._add("product", [s.name for s in term.sources], label, {"axis": signal.axis}, tensors)
            else:
                label = self._scaled(term, term.bias + bias, signal, label)
                bias = np.zeros(())
            parts.append(Analog(label, signal.shape))
        answer = parts[0]
        for part in parts[1:]:
            answer = self.floating("Add", [answer.name, part.name], signal.shape)
        if bias.any():
            added = self.constant(laid(bias, signal.axis, len(signal.shape) + 1))
            answer = self.floating("Add", [answer.name, added], signal.shape)
        if signal.rectified:
            answer = self.floating("Relu", [answer.name], answer.shape)
        for view in signal.views:
            answer = cast(Analog, self.viewed(answer, view))
        return answer

    def _scaled(self, term: Term, bias: Vector, sums: Sums, name: str) -> str:
        term, units = self._with_digits(term, term.scale, LARGEST_SUM)
        source = term.sources[0]
        try:
            made = rounding.scaling(units, np.broadcast_to(bias, len(units)), source.largest, wide=source.wide)
        except ExportError as error:
            raise self.refuse(str(error)) from error
        tensors: dict[str, Array] = {"weight": made.weight, "bias": made.bias, "scale": made.scale.astype(np.float32)}
        return self._weighted(term, sums, tensors, name, None)

    def _with_digits(self, term: Term, scale: Vector, most: int) -> tuple[Term, Vector]:
        """A term, and its weights times a scale; of codes in coarser units where these would leave the weights no digits."""
        source, weight = term.sources[0], cast(Vector, term.weight)
        units = rounding.per_output(weight, scale)
        if not source.wide or rounding.leaves_digits(units, source.largest, most):
            return term, units
        shrunk = self.shrunk(source)
        # Weights hold the steps of their codes, and so the factor.
        weight = weight * float(np.max(shrunk.step / source.step))
        return replace(term, sources=(shrunk,), weight=weight), rounding.per_output(weight, scale)

    def _weighted(
        self, term: Term, sums: Sums, tensors: Mapping[str, Array], name: str, codes: tuple[int, int] | None
    ) -> str:
        name = name if codes is None else self.free(name)
        attributes = {"operator": term.operator, "axis": sums.axis, "shape": list(sums.shape), **term.options}
        self._add("synapse", [term.sources[0].name], name, attributes, tensors, codes)
        return name

    def _decoded(self, codes: Codes, scale: Vector) -> Analog:
        step = laid(codes.step * scale, codes.axis, len(codes.shape) + 1)
        name = self.free(f"{codes.name}_value")
        self._add("decode", [codes.name], name, {}, {"step": step.astype(np.float32)})
        return Analog(name, codes.shape)


def _ends(values: Vector) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _useful(index: int, spans: list[tuple[float, float]], low: int, high: int) -> tuple[float, float]:
    """The values of one term that can matter, and zero: seen, and not beyond what the others can bring back into range."""
    others = [span for place, span in enumerate(spans) if place != index]
    least, most = sum(lo for lo, _ in others), sum(hi for _, hi in others)
    lo, hi = spans[index]
    lo, hi = max(lo, low - 1 - most), min(hi, high + 1 - least)
    return min(lo, 0.0), max(hi, 0.0)
