"""The engine: a worker process that holds the models, and the peer's side of it."""
