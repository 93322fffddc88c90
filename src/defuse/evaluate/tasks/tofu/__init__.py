"""The benchmark TOFU (Maini et al. 2401.06121): questions about invented authors, and figures."""
