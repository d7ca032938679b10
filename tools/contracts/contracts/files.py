"""Compares the files of a tree with those the code makes, and writes them."""

from pathlib import Path

from contracts import http, messages

ROOT = Path(__file__).resolve().parents[3]
OWNED = ("schemas/json/*.json", "docs/problems/*.md")  # nothing else may be there: what is not made is left over


def rendered() -> dict[str, bytes]:
    """Every generated file, by its path in the repository."""
    return messages.rendered() | http.rendered()


def drift(root: Path = ROOT) -> list[str]:
    """Paths of generated files below `root` that are missing, stale, or no longer made."""
    files = rendered()
    stale = {name for name, content in files.items() if not _holds(root / name, content)}
    present = {str(path.relative_to(root)) for pattern in OWNED for path in root.glob(pattern)}
    return sorted(stale | (present - files.keys()))


def write(root: Path = ROOT) -> list[str]:
    """Write the files below `root` and remove those no longer made; the paths that changed."""
    changed, files = drift(root), rendered()
    for name in changed:
        path = root / name
        if name in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        else:
            path.unlink()
    return changed


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
