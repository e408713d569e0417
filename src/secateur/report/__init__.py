"""Reports for people: one self-contained HTML page, JSON and CSV, from one run or a thousand.

A run is a `Report`, the dictionary that `Report.to_dict` gives (with further keys, such as ``"data"``), or
any flat dictionary, for instance of a run that failed.
"""

from secateur.report.files import write_csv, write_json, write_text
from secateur.report.page import write_html
from secateur.report.reading import read_runs
from secateur.report.rows import Run, flatten, metric_of, show
from secateur.report.section import Section
from secateur.report.style import styles

__all__ = [
    "Run",
    "Section",
    "flatten",
    "metric_of",
    "read_runs",
    "show",
    "styles",
    "write_csv",
    "write_html",
    "write_json",
    "write_text",
]
