"""Notes each function of a service that is entered with a certain purchase among its arguments: a stay.

A function is noted once, however often it is entered; what it finds in `self` does not count, nor do comprehensions and
lambdas. A purchase is known by its id and by the key that it was sent with.
"""

import importlib
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import asyncpg
import msgspec
from confluent_kafka import Message

FOLDER = "STAMPEDE_TOUR"  # holds `canaries`, and takes the notes
DEPTH_MAX, ITEMS_MAX = 4, 50
OUR_OBJECTS = ("gateway.", "inventory.", "order_writer.", "ratelimit.", "stampede_schemas.")


class Stay(NamedTuple):
    """Where a purchase was: the file below the service's package, the function, and its line."""

    file: str
    function: str
    line: int


def watch(package: str) -> None:
    """Note the stays in this process from now on, in all threads."""
    folder = Path(os.environ[FOLDER])
    root = str(Path(str(importlib.import_module(package).__file__)).parent) + os.sep
    canaries = tuple((folder / "canaries").read_text().split())
    notes = (folder / package).open("a", buffering=1)
    known: set[CodeType] = set()

    def entered(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or code in known or not code.co_filename.startswith(root) or code.co_name[0] == "<":
            return
        if any(_holds(value, canaries, DEPTH_MAX) for value in _arguments(frame)):
            known.add(code)
            file = code.co_filename.removeprefix(root)
            notes.write(f"{file}\t{code.co_qualname}\t{code.co_firstlineno}\n")

    threading.setprofile(entered)
    sys.setprofile(entered)


def stays(folder: Path, package: str) -> list[Stay]:
    """What a watched service has noted, in order."""
    lines = (line.split("\t") for line in (folder / package).read_text().splitlines())
    return [Stay(file, function, int(line)) for file, function, line in lines]


def _arguments(frame: FrameType) -> Iterable[object]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    values = frame.f_locals
    return [values.get(name) for name in code.co_varnames[:count] if name not in ("self", "cls")]


def _holds(value: Any, canaries: tuple[str, ...], depth: int) -> bool:
    if isinstance(value, str):
        return any(canary in value for canary in canaries)
    if isinstance(value, bytes | bytearray | memoryview):
        return any(canary.encode() in bytes(value) for canary in canaries)
    if depth == 0:
        return False
    return any(_holds(part, canaries, depth - 1) for part in _parts(value))


def _parts(value: Any) -> Iterable[object]:
    if isinstance(value, dict):
        return [*list(value)[:ITEMS_MAX], *list(value.values())[:ITEMS_MAX]]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[:ITEMS_MAX]
    if isinstance(value, msgspec.Struct):
        return [getattr(value, name) for name in value.__struct_fields__]
    if isinstance(value, Message):
        return [value.value()]
    if isinstance(value, asyncpg.Record):
        return list(value.values())
    if type(value).__module__.startswith(OUR_OBJECTS):
        return [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    return ()
