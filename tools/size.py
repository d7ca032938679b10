"""The size of the source: what a newcomer has to read. Limited are statements, which no formatting can change.

Tools are counted apart and have no limit: no production image holds them.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS: dict[tuple[str, ...], int | None] = {
    ("schemas", "libs", "services"): 8_858,
    ("services/inventory",): 1_500,
    ("tools",): None,
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def sizes(text: str) -> tuple[int, int]:
    """Statements, and lines that hold code; neither counts docstrings, comments and blank lines."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    statements = sum(token.type == tokenize.NEWLINE for token in tokens)
    lines = {n for t in tokens if t.type not in _SILENT for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node):
            statements -= 1
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return statements, len(lines)


def main() -> int:
    """Print each part's size; exit 1 if one is over its limit."""
    over = False
    for folders, limit in LIMITS.items():
        texts = [file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py")]
        statements, lines = (sum(counts) for counts in zip(*map(sizes, texts), strict=True))
        whole = sum(text.count("\n") for text in texts)
        most = "" if limit is None else f" (at most {limit:,})"
        print(
            f"{' + '.join(folders)}: {statements:,} statements{most} "
            f"on {lines:,} lines of code, {whole:,} with prose and blanks"
        )
        over = over or (limit is not None and statements > limit)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
