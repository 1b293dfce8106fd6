"""What answers must be and how it is shown: policy, genesis, validation, hybrid score, logs, anchors, receipts.

May import: base modules and `consensus`. Never: `cache_dht`, `p2p`, `plugins`, `node`, `simulations`, `cli`.
"""
