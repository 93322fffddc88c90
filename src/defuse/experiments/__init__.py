"""Experiments: whole comparisons from one file, and the shipped ones."""
