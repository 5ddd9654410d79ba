"""Several processes that work on one network: how they meet, what they do together, and how they share its weights.

``processes`` join a launcher's group and prepare a network for it, ``distributed`` is what they do together (alone, it does
nothing), and ``sharding`` gives each of them a part of the weights.
"""
