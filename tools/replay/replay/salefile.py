"""A sale as a file: JSON lines, one a record, first a line that says what it is, last one that says that it is whole.

    {"kind": "stampede-sale", "version": 1, "taken_at_ms": …, "origin": …, "topic_ids": {…}, "partitions": [0, …]}
    {"topic": "requests", "partition": 3, "offset": 17, "at_ms": …, "text": "{\\"requests\\": …"}
    {"topic": "decisions", "partition": 3, "offset": 17, "at_ms": …, "text": …, "counts": true}
    {"end": 2}

A value that is not UTF-8 stands under `base64`; a tombstone has neither. `counts` is for people and other tools: who
reads a sale here finds out again. A name that ends in .gz (or .zst, from Python 3.14) is compressed.
"""

import gzip
import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from msgspec import UNSET, DecodeError, Struct, UnsetType, field, json

from replay.evidence import CommandRecord, Evidence, Letter, Partition, Record
from replay.failure import CannotCheck

FORMAT = "stampede-sale"
COMMANDS = "order-commands"
TOPICS = ("requests", "decisions", "dead-letters", COMMANDS)
_GZIP_LEVEL = 3


class _Head(Struct):
    kind: str
    version: int
    taken_at_ms: int
    origin: str
    topic_ids: dict[str, str]
    partitions: list[int]
    topics: list[str]


class _Line(Struct, omit_defaults=True):
    topic: str = ""
    partition: int = -1
    offset: int = -1
    at_ms: int = -1
    text: str | UnsetType = UNSET
    raw: bytes | UnsetType = field(default=UNSET, name="base64")
    counts: bool | UnsetType = UNSET
    source: str = ""
    reason: str = ""
    end: int = -1


_line = json.Decoder(_Line).decode
_encode = json.Encoder().encode


def write(
    path: Path, evidence: Evidence, topics: tuple[str, ...] = TOPICS, topic_ids: Mapping[str, str] | None = None
) -> int:
    """Write the records of these topics; returns how many.

    Raises:
        CannotCheck: the file cannot be written here.
    """
    numbers = sorted(evidence.partitions)
    topics = tuple(topic for topic in topics if topic != COMMANDS or evidence.commands is not None)
    head = _Head(FORMAT, 1, evidence.taken_at_ms, evidence.origin, dict(topic_ids or {}), numbers, list(topics))
    count = 0
    try:
        with _open(path, "wb") as file:
            file.write(_encode(head) + b"\n")
            for line in _lines(evidence, topics):
                file.write(_encode(line) + b"\n")
                count += 1
            file.write(_encode(_Line(end=count)) + b"\n")
    except OSError as error:
        raise CannotCheck(f"{path} cannot be written: {error.strerror}.") from None
    return count


def read(path: Path) -> Evidence:
    """The sale in a file.

    Raises:
        CannotCheck: there is none, it is another file, or a part of it is missing.
    """
    try:
        with _open(path, "rb") as file:
            return _read(path, file)
    except FileNotFoundError:
        raise CannotCheck(f"{path} is not there.") from None
    except (OSError, EOFError) as error:
        raise CannotCheck(f"{path} cannot be read: {error}.") from None


def _read(path: Path, file: Iterable[bytes]) -> Evidence:
    lines = iter(file)
    try:
        head = json.decode(next(lines, b""), type=_Head)
    except (DecodeError, UnicodeDecodeError):
        head = None
    if head is None or (head.kind, head.version) != (FORMAT, 1):
        raise CannotCheck(f"{path} is not a sale that `replay export` wrote.")
    partitions = {number: Partition(number) for number in head.partitions}
    letters: list[Letter] = []
    commands: list[CommandRecord] = []
    count, end = 0, -1
    for number, text in enumerate(lines, 2):
        try:
            line = _line(text)
        except (DecodeError, UnicodeDecodeError) as error:
            raise CannotCheck(f"{path} is damaged at line {number}: {error}.") from None
        if line.end >= 0:
            end = line.end
            break
        if line.partition not in partitions and line.topic not in ("dead-letters", COMMANDS):
            raise CannotCheck(f"{path} is damaged at line {number}: partition {line.partition} is not announced.")
        count += 1
        _take(partitions, letters, commands, line)
    if end != count:
        raise CannotCheck(f"{path} was cut off after {count} records; export it again.")
    return Evidence(
        partitions,
        head.taken_at_ms,
        str(path),
        letters=letters if "dead-letters" in head.topics else None,
        commands=commands if COMMANDS in head.topics else None,
    )


def _take(partitions: dict[int, Partition], letters: list[Letter], commands: list[CommandRecord], line: _Line) -> None:
    value = line.text.encode() if isinstance(line.text, str) else None if line.raw is UNSET else line.raw
    if line.topic == "dead-letters":
        letters.append(Letter(line.partition, line.offset, line.at_ms, line.source, line.reason, value or b""))
        return
    if line.topic == COMMANDS:
        commands.append(CommandRecord(line.partition, line.offset, line.at_ms, value or b""))
        return
    partition = partitions[line.partition]
    records = partition.requests if line.topic == "requests" else partition.decisions
    records.append(Record(line.offset, line.at_ms, value))


def _lines(evidence: Evidence, topics: tuple[str, ...]) -> Iterator[_Line]:
    for number, partition in sorted(evidence.partitions.items()):
        if "requests" in topics:
            for record in partition.requests:
                yield _with(_Line("requests", number, record.offset, record.at_ms), record.value)
        if "decisions" in topics:
            void = set(partition.void)
            for record in partition.decisions:
                line = _Line("decisions", number, record.offset, record.at_ms, counts=record.offset not in void)
                yield _with(line, record.value)
    for letter in evidence.letters or () if "dead-letters" in topics else ():
        line = _Line(
            "dead-letters", letter.partition, letter.offset, letter.at_ms, source=letter.source, reason=letter.reason
        )
        yield _with(line, letter.value)
    for command in evidence.commands or () if COMMANDS in topics else ():
        yield _with(_Line(COMMANDS, command.partition, command.offset, command.at_ms), command.value)


def _with(line: _Line, value: bytes | None) -> _Line:
    if value is not None:
        try:
            line.text = value.decode()
        except UnicodeDecodeError:
            line.raw = value
    return line


def _open(path: Path, mode: str) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, mode, compresslevel=_GZIP_LEVEL))
    if path.suffix == ".zst":
        try:
            zstd: Any = importlib.import_module("compression.zstd")
        except ImportError:
            raise CannotCheck(f"{path}: zstd needs Python 3.14 or newer; name it .gz instead.") from None
        return cast(IO[bytes], zstd.open(path, mode))
    return path.open(mode)
