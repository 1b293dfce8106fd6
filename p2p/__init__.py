"""Peers talking: the Network port, the libp2p host behind it, its in-memory twin, framing and the wire protocols.

May import: base modules, `consensus`, `cache_dht`, `governance`. Never: `plugins`, `node`, `simulations`, `cli`.
"""
