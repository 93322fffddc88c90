"""The experiment on TOFU: teach invented authors, unlearn some, compare with a retrained model."""
