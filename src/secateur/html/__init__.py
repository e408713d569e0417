"""Reports for people: one self-contained HTML page, JSON and CSV, from one run or a thousand.

A run is a `Report`, the dictionary that `Report.to_dict` gives (with further keys, such as ``"data"``), or
any flat dictionary, for instance of a run that failed.
"""

from secateur.html.files import write_csv, write_json, write_text
from secateur.html.page import write_html
from secateur.html.reading import read_runs
from secateur.html.rows import Run, flatten, metric_of
from secateur.html.section import Section
from secateur.html.style import styles

__all__ = [
    "Run",
    "Section",
    "flatten",
    "metric_of",
    "read_runs",
    "styles",
    "write_csv",
    "write_html",
    "write_json",
    "write_text",
]
