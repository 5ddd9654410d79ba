"""The rules of lowering: for each ATen operator, what it makes of its signals."""

from polarspike.exporters.rules import affine, floats, layouts, pooling, sites, synapses

RULES = {**sites.RULES, **synapses.RULES, **affine.RULES, **pooling.RULES, **layouts.RULES, **floats.RULES}

__all__ = ["RULES"]
