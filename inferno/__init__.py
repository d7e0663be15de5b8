"""Inferno: an LLM inference server that is secure from its first start. Importing this is cheap."""

__version__ = "0.1.0"
