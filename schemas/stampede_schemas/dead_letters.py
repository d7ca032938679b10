"""What a dead letter holds of a record that can never be acted on: all of it, or of a large one its beginning.

A record's limit is one of its compressed form: a value of megabytes may come in some kilobytes, and no topic would take
its letter. Such a letter says so: `size` and `sha256` are those of the whole value, `kept` says how much of it follows.
Its position is in the other headers, so the whole value is still to be had where it stands. Pure.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from stampede_schemas.topics import MESSAGE_BYTES_MAX

WHOLE_BYTES_MAX: Final = MESSAGE_BYTES_MAX  # value and foreign headers, of a letter that holds all of them
KEPT_BYTES: Final = 64 * 1024
_HEADER_OVERHEAD = 8

Headers = Sequence[tuple[str, bytes]]


def letter(
    value: bytes, known: Headers, foreign: Headers = (), whole_bytes_max: int = WHOLE_BYTES_MAX
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The value and the headers of the letter for a record.

    Args:
        value: of the record.
        known: headers that say where it stood and why it lies here; they are always kept.
        foreign: headers of the record itself.
        whole_bytes_max: beyond it the letter holds the beginning.
    """
    headers_size = sum(len(name) + len(content) + _HEADER_OVERHEAD for name, content in foreign)
    headers = [*known]
    if len(value) + headers_size <= whole_bytes_max:
        return value, [*headers, *foreign]
    if len(value) > KEPT_BYTES:
        digest = sha256(value).hexdigest().encode()
        headers += [("size", b"%d" % len(value)), ("sha256", digest), ("kept", b"%d" % KEPT_BYTES)]
    if headers_size <= KEPT_BYTES:
        headers += foreign
    else:
        headers.append(("headers_left_out", b"%d" % len(foreign)))
    return value[:KEPT_BYTES], headers
