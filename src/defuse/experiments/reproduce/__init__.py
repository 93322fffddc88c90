"""The rows of the RNA paper's summary, measured on any model."""
