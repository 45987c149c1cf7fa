"""Transports between the three parties, behind the one interface of ``encml.net.transport``.

``local`` keeps all three in one process; ``tls`` connects processes, on ``mesh`` (how they meet), ``streams`` and
``frames`` (the wire format). ``ledger`` counts rounds and bytes, ``certificates`` makes and reads a cluster's keys.
"""
