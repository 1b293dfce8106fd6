"""One file per wire protocol: its id, its messages, the handler that serves it and the client that calls it."""
