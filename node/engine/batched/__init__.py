"""The batched path: models of the Llama family on a torch device, many sequences in one pass; for GPUs."""
