"""Texts: reading, tokenising, batching and sampling."""
