"""Agreement: pure Tendermint core, votes, certificates, registry, signer guard, write-ahead log, blocks, driver.

May import: base modules. Never: every other room.
"""
