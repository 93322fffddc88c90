"""Broken inputs of every kind, each in a bounded fork, and whether they are refused as promised."""
