"""Reads which words must be nowhere, and what else to look for them in.

The file: `{"canaries": ["ann@example.org", ...], "files": ["logs/*.log", ...]}`; patterns are relative to the file.
"""

import base64
import json
from pathlib import Path
from urllib.parse import quote

from replay.evidence import Canaries
from replay.failure import CannotCheck

LENGTH_MIN = 6  # a shorter word stands somewhere by chance


def read(path: Path) -> Canaries:
    """The words in every form they may be written in, and the files.

    Raises:
        CannotCheck: the file cannot be read, names no word, or one that is too short to mean anything.
    """
    try:
        document = json.loads(path.read_text())
        words = [str(word) for word in document["canaries"]]
        files = sorted(found for pattern in document.get("files", ()) for found in path.parent.glob(pattern))
        texts = [(str(found), found.read_bytes()) for found in files if found.is_file()]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise CannotCheck(f"{path} does not say which canaries to look for ({error!r}).") from None
    if not words or min(map(len, words)) < LENGTH_MIN:
        raise CannotCheck(f"{path} must name canaries of at least {LENGTH_MIN} characters.")
    return Canaries([forms(word) for word in words], texts)


def forms(word: str) -> tuple[bytes, ...]:
    """A word as text, inside JSON, in a URL, in Base64 and in hex."""
    raw = word.encode()
    written = {raw, json.dumps(word)[1:-1].encode(), quote(word, safe="").encode(), raw.hex().encode()}
    return tuple(sorted(written | {base64.b64encode(raw).rstrip(b"=")}))
