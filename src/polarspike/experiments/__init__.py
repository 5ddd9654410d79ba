"""Whole experiments: what is asked (``recipe``), from which network (``parents``), the way, what it found (``outcome``).

``recipes`` holds those that are published; ``rehearsal`` goes through one on random images before hours are spent on it.
"""

from polarspike.experiments.recipe import Recipe

__all__ = ["Recipe"]
