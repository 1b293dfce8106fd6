"""The wire protocols, one file each: messages, the handler that serves them, the client that asks.

Every message is a canonical value in a bounded frame; every handler has deadlines and asks the directory who the peer
is where only members may come. Strangers may say hello, sync, and fetch public records, within rates.
May import: what `nsllm.p2p` may. Never: `plugins`, `node`, `simulations`, `cli`.
"""
