"""Operations of a spiking network on a batch, counted in integers, edge exact, by name; joules come from ``energy``.

``connections`` knows which pairs of input and output exist, ``streams`` what travels along each edge, ``counts`` what a row
holds and how rows are summed, and ``tally`` walks the network.
"""

from polarspike.counting.counts import (
    ElementwiseCounts,
    MemoryCounts,
    MessageUnit,
    OperationCounts,
    SiteCounts,
    SynapseCounts,
)
from polarspike.counting.tally import count_operations

__all__ = [
    "ElementwiseCounts",
    "MemoryCounts",
    "MessageUnit",
    "OperationCounts",
    "SiteCounts",
    "SynapseCounts",
    "count_operations",
]
