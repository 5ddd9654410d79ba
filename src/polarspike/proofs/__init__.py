"""How equality is shown: what two networks did (``recordings``), what differed (``tallies``), what is claimed (``proof``).

``simulator`` is the second proof, event by event: ``circuit`` takes a network apart into the ``units`` that fire, the
``junctions`` where spikes arrive and the ``stretches`` of arithmetic between them. ``temporal_equivalence`` proves what
can be proved of a network that was trained through time; ``scope`` finds what no proof covers.
"""
