"""Dead letters as a person reads them: what lies there, and one of them whole. Sends nothing back."""

import json

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from replay.evidence import Letter
from replay.failure import CannotCheck

PREVIEW_CHARS = 60


def listed(console: Console, letters: list[Letter]) -> None:
    """One line a letter, oldest first within its partition; repeats of one source are one line."""
    table = Table(box=SIMPLE)
    for name in ("source", "reason", "bytes", "copies", "begins with"):
        table.add_column(name, justify="right" if name in {"bytes", "copies"} else "left")
    copies: dict[str, list[Letter]] = {}
    for letter in letters:
        copies.setdefault(letter.source, []).append(letter)
    for source, same in copies.items():
        value = same[0].value
        table.add_row(source, same[0].reason, f"{len(value):,}", str(len(same)), escape(_text(value)[:PREVIEW_CHARS]))
    console.print(table if letters else "There are no dead letters.")


def shown(console: Console, letters: list[Letter], source: str) -> None:
    """One letter whole. Raises CannotCheck if there is none from `source`."""
    found = next((letter for letter in letters if letter.source == source), None)
    if found is None:
        raise CannotCheck(f"there is no dead letter from {source}; `replay dead-letters list` names them.")
    console.print(f"{found.source}: {found.reason}; dead-letters/{found.partition}/{found.offset}", highlight=False)
    console.print(_text(found.value), markup=False, highlight=False, soft_wrap=True)


def _text(value: bytes) -> str:
    """Printable whatever is in it: bytes that are not UTF-8 and control characters come escaped."""
    return json.dumps(value.decode(errors="backslashreplace"), ensure_ascii=False)[1:-1].replace('\\"', '"')
