"""Log lines stay lines, whatever is put into them."""

import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from telemetry.logs import JsonLines


@given(st.text(), st.text())
def test_any_text_is_one_line_of_printable_ascii(message: str, field: str) -> None:
    """Newlines, terminal escapes and foreign scripts come out escaped, and read back as they were."""
    record = logging.makeLogRecord(
        {"msg": "%s", "args": (message,), "levelno": 30, "levelname": "WARNING", "who": field}
    )
    line = JsonLines("gateway", "gateway-0").format(record)
    assert all(" " <= character <= "~" for character in line)
    told = json.loads(line)
    assert (told["message"], told["who"], told["level"]) == (message, field, "warning")
