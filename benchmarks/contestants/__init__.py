"""The programs that are measured, each a process of its own that waits until it is told to go.

A contestant reads tasks as JSON lines from standard input and writes results to standard output (`stage`), so that one
works while the others sleep. `llamacpp` runs in the environment that `make bench-setup` builds and imports nothing of
the product; the others run in the product's.
"""
