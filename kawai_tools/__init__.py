"""kawai: manage llama.cpp builds, GGUF models and a catalog to pull them from."""

__version__ = "0.1.0"
