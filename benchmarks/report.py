"""Processor time to open a report: ``python benchmarks/report.py runs/bench/report.html``.

Opens the page in headless Chromium (Debian's chromium and chromium-driver, selenium), each time in a fresh
profile and then again in the same one. Prints the processor seconds of the page's thread until the load
event; the page draws its plots before that event.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from selenium import webdriver

FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run")


def time_openings(page: Path) -> tuple[float, float]:
    """Return the seconds of the first and of the second opening in a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        browser.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        try:
            return _time_opening(browser, page), _time_opening(browser, page)
        finally:
            browser.quit()


def _time_opening(browser: webdriver.Chrome, page: Path) -> float:
    browser.get("about:blank")  # resets the counters
    browser.get(page.resolve().as_uri())
    metrics = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return {metric["name"]: metric["value"] for metric in metrics}["TaskDuration"]


def main() -> None:
    """Print medians and ranges."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="an HTML report")
    parser.add_argument("--times", type=int, default=5, help="fresh profiles")
    options = parser.parse_args()
    times = [time_openings(options.page) for _ in range(options.times)]
    print(f"{options.page}: {options.page.stat().st_size / 1e6:.1f} MB")
    for name, seconds in zip(("first opening", "second opening"), zip(*times, strict=True), strict=True):
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
