"""A grid of recipes, run on Ray and compared."""
