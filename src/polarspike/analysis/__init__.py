"""What the sites of a network see (``observation``), what their errors do to its ``answers``, and what to do about it.

``sensitivity`` says how much an error matters, ``advice`` what would lessen it; ``diagnosis`` is the table of all of it.
"""
