"""A newcomer finds the answer to twenty questions by the names of files: `tests/hunt.toml`."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS: list[dict[str, str]] = tomllib.loads((ROOT / "tests/hunt.toml").read_text())["question"]


def symbols(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Every function, class and method of a module, methods as `Class.method`."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from symbols(node.body, f"{node.name}.")


def test_there_are_twenty() -> None:
    """Each is asked once."""
    assert len({question["asks"] for question in QUESTIONS}) == 20


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["asks"])
def test_the_answer_lies_where_its_word_says(question: dict[str, str]) -> None:
    """File and symbol are there; a word of the question is in the name of the file or of its folder."""
    path = ROOT / question["file"]
    assert question["symbol"] in set(symbols(ast.parse(path.read_text()).body))
    word = question["word"]
    assert word in path.stem or word in path.parent.name
    asked = question["asks"].lower().replace("-", " ")
    assert all(part.rstrip("s") in asked for part in word.split("_")), "the word is one of the question's own"
