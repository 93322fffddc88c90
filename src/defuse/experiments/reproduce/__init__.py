"""The rows of the RNA paper's summary, measured on a model of the user's choice."""
