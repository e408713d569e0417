"""Reports as files: one self-contained HTML page, JSON and CSV, from one run or a thousand.

A run is a `Report`, the dictionary that `Report.to_dict` returns (with further keys, such as ``"data"``), or
any flat dictionary, for instance of a run that failed.
"""

from secateur.core.paths import write_text
from secateur.html.files import write_csv, write_json
from secateur.html.page import write_html
from secateur.html.plot_styles import method_styles
from secateur.html.reading import read_runs, read_sections
from secateur.html.rows import Run, SavedRuns, flatten, metric_of
from secateur.html.section import Section

__all__ = [
    "Run",
    "SavedRuns",
    "Section",
    "flatten",
    "method_styles",
    "metric_of",
    "read_runs",
    "read_sections",
    "write_csv",
    "write_html",
    "write_json",
    "write_text",
]
