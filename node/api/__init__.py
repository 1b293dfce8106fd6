"""The HTTP side: OpenAI-compatible API, receipts, metrics and the status page, on aiohttp in its own thread."""
