"""TOFU (Maini et al. 2401.06121): invented authors, learnt, forgotten and asked about."""
