"""A dead letter that holds only the beginning of very many bytes: what the checker takes for it, and what not."""

from collections.abc import Callable
from hashlib import sha256

import pytest

from replay.evidence import Letter
from replay.judge import judge
from replay.rules import s16_nothing_skipped
from tests.support.builders.replay import SmallSale
from tests.support.builders.requests import listing

LARGE = b"begins" + bytes(1_100_000)
BEGINNING = 64 * 1024


def cut(letter: Letter, value: bytes = LARGE) -> Letter:
    """As the inventory writes it."""
    said = (("size", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode()))
    return letter._replace(value=value[:BEGINNING], headers=said)


def violated(change: Callable[[Letter], Letter], value: bytes = LARGE) -> set[str]:
    """What the checker finds in a sale with this poison and this letter."""
    sale = SmallSale()
    sale.ask(listing(stock=3))
    sale.log(value)
    evidence = sale.evidence()
    evidence.letters = [change(letter) for letter in sale.letters]
    return {found.name for found in judge(evidence, (s16_nothing_skipped,)) if found.violations}


def test_size_hash_and_beginning_stand_for_what_is_too_large() -> None:
    """And in an exported sale, which keeps no headers, the beginning."""
    assert violated(cut) == set()
    assert violated(lambda letter: cut(letter)._replace(headers=())) == set()


SPOILT: dict[str, Callable[[Letter], Letter]] = {
    "another hash": lambda it: cut(it)._replace(headers=cut(it, LARGE + b"x").headers),
    "another beginning": lambda it: cut(it)._replace(value=bytes(BEGINNING)),
    "too little of it": lambda it: cut(it)._replace(value=LARGE[:100]),
    "headers that say nothing of it": lambda it: cut(it)._replace(headers=(("reason", b"too_large"),)),
}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT.keys())
def test_another_one_is_named(change: Callable[[Letter], Letter]) -> None:
    """Nothing is skipped: S16."""
    assert violated(change) == {"S16"}


def test_what_fits_must_be_whole() -> None:
    """A letter may not be cut for convenience."""
    small = b"\xff" * 100_000
    assert violated(lambda letter: cut(letter, small), small) == {"S16"}
    assert violated(lambda letter: letter, small) == set()
