"""One self-contained HTML page for what an experiment found."""

from defuse.report.page import Flip, Page, Section, TableData, embed_figure, render

__all__ = ["Flip", "Page", "Section", "TableData", "embed_figure", "render"]
