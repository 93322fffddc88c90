"""Unlearning: recipes, the training step, the loop, and runs from recipe to checkpoint."""
