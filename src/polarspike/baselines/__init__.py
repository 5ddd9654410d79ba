"""Rival methods, measured on the same network, images and counts as ours, at their true latency.

``methods`` names all of them, ``rival`` is their one interface. Their parts: ``neurons``, ``thresholds`` and ``settling``
(conversion), ``quantizers``, ``leaky`` (direct training), ``peers`` (other tools). A ``comparison`` says what is asked,
``presets`` are those of the docs, and a ``contest`` carries one out: on a ``scene``, through ``trainings`` in ``stages``, by
``choice`` among settings, ``counting`` and ``measurement``, into ``rows``, at a ``cost`` that is told before, as the
``remainder`` is at the end. ``published`` are others' figures.
"""

from polarspike.baselines.methods import METHODS, Method
from polarspike.baselines.rival import Rival, RivalSpec, prepare
from polarspike.spiking.sequences import SequenceNetwork

__all__ = ["METHODS", "Method", "Rival", "RivalSpec", "SequenceNetwork", "prepare"]
