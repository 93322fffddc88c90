"""Hugging Face models: loading, saving, and the one door into their insides."""
