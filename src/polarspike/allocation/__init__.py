"""Levels and steps of all sites under one budget: ``candidates``, what they cost by the ``meter``, the best of them."""

from polarspike.allocation.budget import Allocation, allocate

__all__ = ["Allocation", "allocate"]
