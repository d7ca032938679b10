"""`python -m tests.tour [--markdown FILE]`: follow one purchase through the services, and write the tour down."""

import argparse
from pathlib import Path

from tests.tour.purchase import follow, sentence_of, visits
from tests.tour.stays import Stay

HEAD = """# A tour of the code

One purchase, accepted, reserved and paid, and where it was: each function that was entered with it among its arguments,
in order, as `python -m tests.tour --markdown docs/TOUR.md` saw it in the running services. A visit is a change from one
file to another; a test holds how many there are.
"""


def page(told: dict[str, list[Stay]]) -> str:
    """The tour as Markdown, one line a stop."""
    parts = [HEAD]
    for service, stops in told.items():
        came = visits(stops)
        parts.append(f"\n## {service}: {len(stops)} stops, {len(came)} visits of {len(set(came))} files\n\n")
        for number, stop in enumerate(stops, start=1):
            sentence = sentence_of(service, stop)
            parts.append(f"{number}. `{stop.file}` `{stop.function}`{': ' + sentence if sentence else ''}\n")
    return "".join(parts)


def main() -> None:
    """Follow and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.tour", description=__doc__)
    parser.add_argument("--markdown", type=Path, help="write the tour here instead of printing it")
    asked = parser.parse_args()
    text = page(follow())
    if asked.markdown:
        asked.markdown.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
