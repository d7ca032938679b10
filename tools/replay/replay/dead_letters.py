"""Dead letters as a person or a program reads them: what lies there, one of them whole, what became of a redrive."""

import json
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from replay.evidence import Letter
from replay.failure import CannotCheck
from replay.redrive import Redriven

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
        value, (size, *_) = same[0].value, same[0].cut or (len(same[0].value),)
        table.add_row(source, same[0].reason, f"{size:,}", str(len(same)), escape(_text(value)[:PREVIEW_CHARS]))
    console.print(table if letters else "There are no dead letters.")


def shown(console: Console, letter: Letter) -> None:
    """One letter: where it lies, its headers, its bytes."""
    console.print(f"{letter.source}: {letter.reason}; dead-letters/{letter.partition}/{letter.offset}", highlight=False)
    for name, value in letter.headers:
        console.print(f"  {_text(name.encode())}: {_text(value)}", markup=False, highlight=False, soft_wrap=True)
    console.print(_text(letter.value), markup=False, highlight=False, soft_wrap=True)


def told(console: Console, done: Redriven) -> None:
    """What a redrive did."""
    what = "stands again at" if done.sent else "was redriven before, nothing was sent: it stands at"
    console.print(f"{done.source} {what} {done.at}.", highlight=False, soft_wrap=True)


def found(letters: list[Letter], source: str) -> Letter:
    """The letter from `source`. Raises CannotCheck if there is none."""
    letter = next((letter for letter in letters if letter.source == source), None)
    if letter is None:
        raise CannotCheck(f"there is no dead letter from {source}; `replay dead-letters list` names them.")
    return letter


def as_data(letter: Letter) -> dict[str, Any]:
    """A letter for programs; bytes that are not UTF-8 come escaped."""
    return {
        "source": letter.source,
        "reason": letter.reason,
        "lies_at": f"dead-letters/{letter.partition}/{letter.offset}",
        "at_ms": letter.at_ms,
        "headers": {name: _readable(value) for name, value in letter.headers},
        "value": _readable(letter.value),
    }


def _readable(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _text(value: bytes) -> str:
    """Printable whatever is in it: bytes that are not UTF-8 and control characters come escaped."""
    return json.dumps(_readable(value), ensure_ascii=False)[1:-1].replace('\\"', '"')
