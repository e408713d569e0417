"""What a newcomer pays: the import, a pruning of VGG-16 by default, and the lines that results print.

Run as ``python benchmarks/first_contact.py``.  To compare with another checkout in one run, name its source
folder: ``python benchmarks/first_contact.py ../old/src``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, resource, time, warnings, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
cpu = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
start = cpu()
import secateur as sc
result = {"import, CPU s": cpu() - start}
from secateur import zoo
model = zoo.vgg16(classes=10) if "classes" in zoo.vgg16.__code__.co_varnames else zoo.vgg16()
x = torch.zeros(2, 3, 32, 32)
start, begun = time.perf_counter(), cpu()
try:
    pruned = sc.prune(model, x, sc.Units(0.5))
except TypeError:  # version 0.1 took the method before the budget
    pruned = sc.prune(model, x, "magnitude", sc.Units(0.5))
result |= {"prune VGG-16, wall s": time.perf_counter() - start, "prune VGG-16, CPU s": cpu() - begun}
graph = pruned.graph if hasattr(pruned, "graph") else pruned.network
for name, value in {"graph": graph, "plan": pruned.plan, "report": pruned.report}.items():
    result[f"lines of repr({name})"] = len(repr(value).splitlines())
result["lines of repr(result)"] = len(repr(pruned).splitlines())
result["public names"] = len(sc.__all__)
print(json.dumps(result))
"""


def run(source: str | None) -> dict[str, float]:
    """Run the script on a source folder, or on the installed package, in a process of its own."""
    environment = dict(os.environ) if source is None else {**os.environ, "PYTHONPATH": source}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a Markdown table."""
    sources = [None, *(str(Path(source).resolve()) for source in sys.argv[1:])]
    columns = [run(source) for source in sources]
    print(f"| | here |{'|'.join(' other ' for _ in columns[1:])}|" if len(columns) > 1 else "| | here |")
    print("|---|" + "---:|" * len(columns))
    for name in columns[0]:
        print(
            f"| {name} | " + " | ".join(f"{column.get(name, float('nan')):,.4g}" for column in columns) + " |"
        )


if __name__ == "__main__":
    main()
