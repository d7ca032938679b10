"""How the code speaks and how long its parts are: retired words stay out, files and functions stay short."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_PER_FILE_MAX, LINES_PER_FUNCTION_MAX = 400, 70
FOLDERS = ("schemas", "libs", "services", "tools", "tests", "bench", "clients")
RIDDLES_MAX = 0.03
RIDDLE = re.compile(r"(who|whom|whose|whoever|what|whatever|nobody)\b", re.IGNORECASE)
RETIRED: list[dict[str, str]] = tomllib.loads((ROOT / "tests/words.toml").read_text())["retired"]


def sources(*folders: str) -> Iterator[Path]:
    """The Python files of these folders."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that code gives to something or uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.alias):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def documents() -> Iterator[Path]:
    """The documents of the project; decisions are told in the words of their time."""
    for pattern in ("*.md", "docs/*.md", "docs/runbooks/*.md", "services/*/README.md", "libs/*/README.md"):
        yield from ROOT.glob(pattern)


def test_no_retired_name_is_in_the_code() -> None:
    """Not as a class, a function, an attribute or a variable."""
    retired = {entry["word"]: entry["now"] for entry in RETIRED if entry["where"] == "identifier"}
    found = {
        f"{path.relative_to(ROOT)}: {name} is {retired[name]} now"
        for path in sources("schemas", "libs", "services", "tools", "tests")
        for name in names(ast.parse(path.read_text()))
        if name in retired
    }
    assert not found


def test_no_retired_word_is_in_the_prose() -> None:
    """Neither in docstrings and comments of the product nor in its documents."""
    retired = {entry["word"]: entry["now"] for entry in RETIRED if entry["where"] == "prose"}
    found = [
        f"{path.relative_to(ROOT)}: say {now} instead of {word!r}"
        for path in (*sources("schemas", "libs", "services", "tools"), *documents())
        for word, now in retired.items()
        if re.search(rf"\b{word}\b", path.read_text(), re.IGNORECASE)
    ]
    assert not found


def sentences(path: Path) -> Iterator[str]:
    """The sentences of a file's docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for sentence in re.split(r"(?<=[.!?:])\s+", ast.get_docstring(node) or ""):
                if sentence.strip():
                    yield " ".join(sentence.split())


def test_few_sentences_begin_with_a_riddle() -> None:
    """A subject is a noun: at most 3 % of the services' sentences begin with who, whoever, whatever, what or nobody."""
    found = [(path, sentence) for path in sources("services") for sentence in sentences(path)]
    riddles = [f"{path.relative_to(ROOT)}: {said}" for path, said in found if RIDDLE.match(said)]
    assert len(riddles) <= RIDDLES_MAX * len(found), "\n".join(riddles)


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_functions_are_short(folder: str) -> None:
    """A file is a sitting, a function a screen."""
    long = []
    for path in sources(folder):
        text = path.read_text()
        if (lines := text.count("\n")) > LINES_PER_FILE_MAX:
            long.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LINES_PER_FUNCTION_MAX:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long


def test_each_module_that_calls_itself_pure_is_held_to_it() -> None:
    """The contract on imports names it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (held,) = (each["source_modules"] for each in contracts if each["name"].startswith("rules have no clock"))
    loose = []
    for path in sources("libs", "services"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts[2:])
        says_so = re.search(r"\bPure[.:]", ast.get_docstring(ast.parse(path.read_text())) or "")
        if says_so and not any(module == one or module.startswith(f"{one}.") for one in held):
            loose.append(module)
    assert not loose
