"""Pure tensor losses in three families: hidden states, tokens and whole sequences.

Axes: `batch` sequences (B), `time` tokens of a sequence (T), `hidden` units (d), `vocab` (V),
`tokens` selected from a batch (N or M); the tests check them at run time. "RNA paper" is Huu-Tien
et al., arXiv 2501.19202. Losses are computed in float32, or in float64 for float64 input.
"""
