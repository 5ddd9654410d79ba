"""Other tools, driven through their public interface on the same weights and images.

    spikingjelly-rate        2.0, ``ann2snn.RateCodingRecipe``: settings ``mode``, ``channel_wise``, ``half_threshold``,
                             ``pre_spike_maxpool``
    spikingjelly-balanced    2.0, ``ann2snn.LocalThresholdBalancingRecipe``
    spikingjelly-sta         2.0, ``ann2snn.STATransformerRecipe``, which spikes behind layer norms, GELUs and attention,
                             several times a step and with either sign; the image enters once, and products in the
                             attention stay those of floats: settings ``time_steps``, ``threshold_mode``
    sinabs                   3.1, ``from_model``: settings ``scale``, ``half_threshold``, ``percentile``,
                             ``multi_spike``

The packages belong to the extra ``baselines``; where their requirements clash with yours, give them an environment of
their own and run the same command there. A peer's network is measured by :func:`polarspike.evaluate` like any other: its
spikes are what its own neuron modules put out.

What a tool does not take is a SpecError: what it raises by itself as a ValueError or NotImplementedError while it converts
(SpikingJelly: activations of one dimension, thresholds that are not positive; of both, what torch.fx cannot trace), or what
this page refuses for it. Anything else that goes wrong is an error.
"""

from polarspike.baselines.peers.network import PeerNetwork
from polarspike.baselines.peers.packages import version
from polarspike.baselines.peers.registry import PEERS, Peer, convert_with

__all__ = ["PEERS", "Peer", "PeerNetwork", "convert_with", "version"]
