"""Ranks: processes that run one text model together, a device each. Rank 0 is the model worker, which leads."""
