"""Unlearning: recipes, the training step, the loop, and a run from recipe to checkpoint."""
