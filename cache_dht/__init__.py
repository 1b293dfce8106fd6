"""The federated cache: shard placement, record store (SQLite), semantic index (FAISS), reuse rules with an error bound.

May import: base modules and `consensus`. Never: `governance`, `p2p`, `plugins`, `node`, `simulations`, `cli`.
"""
