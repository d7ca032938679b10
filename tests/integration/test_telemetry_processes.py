"""What whole processes leave: log lines on stdout, and spans in a file that several of them share."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.processes.stack import eventually


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


def test_killed_processes_leave_whole_lines(tmp_path: Path) -> None:
    """Two processes share one file and are killed: all lines are whole, and what is older than the delay is there."""
    file = tmp_path / "shared.jsonl"
    program = (
        "import sys; from telemetry.tracing import configure; t = configure('s', 's-0', sys.argv[1], 1.0)\n"
        "for n in range(3000): t.record('x' * 50, start_ns=n, end_ns=n)\n"
        "print('recorded', flush=True); sys.stdin.read()"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == b"recorded\n"
    eventually(lambda: file.read_bytes().count(b"\n") >= 6000, what="the spans, written while the processes idle")
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 6000
