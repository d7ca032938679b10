"""Log lines stay lines, whatever is put into them."""

import json
import logging
import subprocess
import sys

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


def test_a_process_logs_json_lines_to_stdout() -> None:
    """Service, instance and the given trace id stand in each line; an exception is part of it; DEBUG is left out."""
    program = (
        "import logging; from telemetry.logs import configure_logs\n"
        "configure_logs('inventory', 'inventory-1', 'info')\n"
        "log = logging.getLogger('x'); log.debug('no'); log.info('yes', extra={'trace_id': 'abc'})\n"
        "try: 1 / 0\nexcept ZeroDivisionError: log.exception('broke')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    first, second = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (first["service"], first["instance"], first["trace_id"]) == ("inventory", "inventory-1", "abc")
    assert (second["message"], second["level"]) == ("broke", "error")
    assert "ZeroDivisionError" in second["exception"]
    assert ended.stderr == ""
