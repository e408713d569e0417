"""Reports for people: one self-contained HTML page, JSON and CSV, from one run or a thousand.

A run is a `Report`, the dictionary that `Report.to_dict` gives (with further keys, such as ``"data"``), or
any flat dictionary, for instance of a run that failed.
"""

from secateur.report.files import read_runs, write_csv, write_json, write_text
from secateur.report.page import write_html
from secateur.report.rows import Run, flatten, show
from secateur.report.section import Section

__all__ = [
    "Run",
    "Section",
    "flatten",
    "read_runs",
    "show",
    "write_csv",
    "write_html",
    "write_json",
    "write_text",
]
