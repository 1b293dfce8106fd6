"""Whole networks: on a virtual clock with an in-memory network, and as real local processes (devnet).

May import: every room but `cli`. Never: `cli`.
"""
