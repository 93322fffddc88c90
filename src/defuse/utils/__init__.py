"""Errors, files, randomness, configuration and other tools that every room uses."""
