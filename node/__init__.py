"""The peer: configuration, identity, engine, orchestration of a question, publication, HTTP API, status page.

May import: every room but `simulations` and `cli`. Never: `simulations`, `cli`.
"""
