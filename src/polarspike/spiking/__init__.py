"""The spiking network and its ways to run: a step, several, all timesteps at once, or as it was trained through time.

``network`` holds it; ``timing`` decides how each signal of its graph is carried from step to step, ``overwriting`` which
memory may be used again, and ``walks`` go through the graph. ``sequences`` takes all timesteps in one batch, and
``through_time`` trains on them.
"""

from polarspike.spiking.network import Latency, Observable, Observer, SpikingNetwork, SpikingState

__all__ = ["Latency", "Observable", "Observer", "SpikingNetwork", "SpikingState"]
