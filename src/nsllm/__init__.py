"""NS-LLM: a peer-to-peer federated LLM network. Base modules: the words that every room speaks."""

__version__ = "0.1.0"
