"""Operations of a spiking network on a batch, counted in integers, edge exact, by name; joules come from ``energy``.

``connections`` and ``products`` know which pairs of input and output exist, ``streams`` what travels along an edge, and
``propagation`` how operators pass it on, over a ``recording`` of one run. ``rows`` say what is counted, ``subtotals`` are
rows in the making, ``counts`` sums them, ``tally`` makes them step by step, and ``measurement`` runs the network.
"""

from polarspike.counting.counts import MessageUnit, OperationCounts
from polarspike.counting.measurement import count_operations
from polarspike.counting.rows import ElementwiseCounts, MemoryCounts, SiteCounts, SynapseCounts

__all__ = [
    "ElementwiseCounts",
    "MemoryCounts",
    "MessageUnit",
    "OperationCounts",
    "SiteCounts",
    "SynapseCounts",
    "count_operations",
]
