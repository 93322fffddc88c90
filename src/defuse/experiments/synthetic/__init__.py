"""The controlled experiment: an invented world, a model of it, and one that never saw a part."""
