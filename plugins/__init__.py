"""Extension points: hook specifications, the worker process that runs third-party code, built-in plugins.

May import: base modules, `consensus`, `cache_dht`, `governance`. Never: `p2p`, `node`, `simulations`, `cli`.
"""
