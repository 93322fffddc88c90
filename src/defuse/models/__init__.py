"""Hugging Face models: loading, saving, and the only modules that call their parts."""
