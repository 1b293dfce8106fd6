"""The fast path: models of the Llama family on CPUs, through kernels that are compiled for the machine.

It knows tokens, blocks and tensors; never peers, jobs or sampling. It imports torch for memory and files, never
transformers.
"""
