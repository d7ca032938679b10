"""The size of the source, in lines of code: what has to be read, without blank lines, comments and docstrings."""

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {("schemas", "libs", "services"): 6_000, ("services/inventory",): 1_500}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines that hold code."""
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _SILENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            held -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(held)


def main() -> int:
    """Print each part's size; exit 1 if one is over its limit."""
    over = 0
    for folders, limit in LIMITS.items():
        files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
        texts = [file.read_text() for file in files]
        lines, whole = sum(map(code_lines, texts)), sum(text.count("\n") for text in texts)
        print(
            f"size: {' + '.join(folders)}: {lines:,} lines of code (at most {limit:,}), {whole:,} with prose and blanks"
        )
        over += lines > limit
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
