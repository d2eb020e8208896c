"""For a person to look at, made from arrays and files: contact sheets, curves, plots of tables, one-file reports."""

from instdisc.report.page import Accuracy, Confusion, Gallery, Map, PageRun, page
from instdisc.report.plots import few_labels_plot, table_plot, training_curves
from instdisc.report.sheet import neighbour_sheet

__all__ = [
    "Accuracy",
    "Confusion",
    "Gallery",
    "Map",
    "PageRun",
    "few_labels_plot",
    "neighbour_sheet",
    "page",
    "table_plot",
    "training_curves",
]
