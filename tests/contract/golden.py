"""The golden files: what every message looked like when it was written. They are never changed, only added to."""

import re
from pathlib import Path
from typing import NamedTuple

SCHEMAS = Path(__file__).parents[2] / "schemas"
_NAME = re.compile(r"(?P<type>[A-Za-z]+)\.v(?P<version>[0-9]+)(\.[a-z_]+)?\.json")


class Golden(NamedTuple):
    """One golden file: the message's type and version by its name, and the bytes that were on the wire."""

    type: str
    version: int
    value: bytes


def all_golden() -> list[Golden]:
    """Every golden file, by name. The line's end is the file's, not the message's."""
    found = []
    for path in sorted((SCHEMAS / "golden").iterdir()):
        name = _NAME.fullmatch(path.name)
        assert name is not None, f"{path.name} is not <Type>.v<version>[.<added>].json"
        found.append(Golden(name["type"], int(name["version"]), path.read_bytes().removesuffix(b"\n")))
    return found


def golden(message: str, version: int = 1) -> bytes:
    """The bytes of one golden message, as its version was first written."""
    return next(each.value for each in all_golden() if (each.type, each.version) == (message, version))
