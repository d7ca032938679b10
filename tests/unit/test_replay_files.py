"""What a sale is written to and read from: whole, unchanged, and never half without saying so."""

import dataclasses
import json
from pathlib import Path

import pytest

from replay import journal, salefile
from replay.failure import CannotCheck
from replay.journal import Attempt, Journal, JournalUnreadable, Told
from tests.support.builders.replay import SmallSale
from tests.support.builders.reports import all_of
from tests.support.builders.requests import LAMP, listing, purchase


def sale() -> SmallSale:
    """A sale with a tombstone, bytes that are no text, a void record and a command."""
    small = SmallSale(partition=0)
    small.ask(listing(stock=3))
    small.log(None)
    small.log(b"\xff\xfe")
    small.ask(purchase())
    small.void()
    small.command(all_of(LAMP, 3))
    return small


@pytest.mark.parametrize("name", ["sale.jsonl", "sale.jsonl.gz"])
def test_a_sale_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    """Every record of the four topics, byte for byte, with its position and its instant."""
    evidence = sale().evidence()
    count = salefile.write(tmp_path / name, evidence, topic_ids={"stampede.requests": "id"})
    back = salefile.read(tmp_path / name)
    assert count == 4 + 5 + 2 + 1
    assert dataclasses.asdict(back)["partitions"] == dataclasses.asdict(evidence)["partitions"]
    assert back.letters == evidence.letters
    assert back.commands == evidence.commands
    assert back.taken_at_ms == evidence.taken_at_ms


def test_a_file_of_before_commands_were_kept_says_nothing_of_them(tmp_path: Path) -> None:
    """It is not taken for a sale without commands, also when it is written once more."""
    file = tmp_path / "sale.jsonl"
    salefile.write(file, sale().evidence(), topics=("requests", "decisions", "dead-letters"))
    old = salefile.read(file)
    assert old.commands is None
    salefile.write(file, old)
    assert salefile.read(file).commands is None


def test_a_file_says_which_records_count(tmp_path: Path) -> None:
    """For people and other tools: positions, and whether a decisions record counts."""
    salefile.write(tmp_path / "sale.jsonl", sale().evidence())
    head, *lines, end = map(json.loads, (tmp_path / "sale.jsonl").read_text().splitlines())
    assert head["kind"] == "stampede-sale"
    assert [line["counts"] for line in lines if line["topic"] == "decisions"] == [True] * 4 + [False]
    assert end == {"end": len(lines)}


@pytest.mark.parametrize("kept", [0, 1, 3, -1])
def test_a_file_that_was_cut_off_is_no_evidence(tmp_path: Path, kept: int) -> None:
    """However much of it is left."""
    file = tmp_path / "sale.jsonl"
    salefile.write(file, sale().evidence())
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:kept]))
    with pytest.raises(CannotCheck, match=r"cut off|not a sale"):
        salefile.read(file)


def test_zstd_needs_a_python_that_has_it(tmp_path: Path) -> None:
    """The name chooses the compression; where the standard library has none, one sentence says so."""
    try:
        import compression.zstd  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        with pytest.raises(CannotCheck, match=r"3\.14"):
            salefile.write(tmp_path / "sale.zst", sale().evidence())
    else:
        salefile.write(tmp_path / "sale.zst", sale().evidence())
        assert salefile.read(tmp_path / "sale.zst").partitions


def test_a_journal_comes_back_as_it_was(tmp_path: Path) -> None:
    """Bodies are bytes, not text; a line of it that is missing is noticed."""
    told = Journal("tea", [Attempt("ann", "k", "p", "confirmed", True, [Told(202, b"\xff{}")], [(1, "reserved")], 2)])
    file = tmp_path / "journal.jsonl"
    journal.write(file, told)
    assert journal.read(file) == told
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    with pytest.raises(JournalUnreadable, match="cut off"):
        journal.read(file)
