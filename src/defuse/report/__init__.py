"""One self-contained HTML page for what an experiment found."""

from defuse.report.page import Flip, Page, Quote, Section, TableData, embed_figure, render

__all__ = ["Flip", "Page", "Quote", "Section", "TableData", "embed_figure", "render"]
