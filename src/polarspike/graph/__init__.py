"""A captured graph: what its operators mean, and how it is read, edited and written down.

``operator_table`` gives every operator a meaning, ``operators`` answers questions about a node, ``editing`` about the whole;
``contract`` says how each operator keeps the running mean, ``placement`` where spikes are wanted, ``synaptic`` which layers
hold weights; ``serialization`` writes a graph down. ``overloads`` and ``layers`` bring foreign operators into the table.
"""
