"""`make coverage`: which functions no test entered, a line per file.

A percentage says how much is left and not what. Must not judge: there is no threshold, and a function that was entered
may still be untested.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def gaps(file: dict[str, Any]) -> Iterator[str]:
    """The functions of one file of coverage's JSON report that ran no statement; `Class.*` if it is all of a class."""
    regions = {name: each for name, each in file["functions"].items() if name and _statements(each)}
    missed = [name for name, each in regions.items() if not each["executed_lines"]]
    of_class, missed_of_class = Counter(map(_class, regions)), Counter(map(_class, missed))
    told = set()
    for name in missed:
        owner = _class(name)
        whole = owner != "" and 1 < of_class[owner] == missed_of_class[owner]
        if (said := f"{owner}.*" if whole else name) not in told:
            told.add(said)
            yield said


def table(report: dict[str, Any]) -> list[str]:
    """A line a file that has gaps, then how many functions were entered."""
    files = report["files"]
    found = {path: list(gaps(file)) for path, file in sorted(files.items())}
    regions = [each for file in files.values() for name, each in file["functions"].items() if name]
    entered = sum(bool(each["executed_lines"]) for each in regions)
    lines = [f"{path}: {', '.join(missed)}" for path, missed in found.items() if missed]
    return [*lines, f"{entered:,} of {sum(map(_statements, regions)):,} functions were entered"]


def _statements(region: dict[str, Any]) -> bool:
    return bool(region["executed_lines"] or region["missing_lines"])


def _class(name: str) -> str:
    return name.rpartition(".")[0].partition(".")[0]


if __name__ == "__main__":
    print(*table(json.loads(Path(sys.argv[1]).read_text())), sep="\n")
