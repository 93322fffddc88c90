"""Predicted and measured effects of noise on hidden states that a forget-token has shifted.

The predictions are derived in docs/theory.md.
"""
