"""Ports of the local stack, beside another process that looks for some."""

import subprocess
import sys
from itertools import islice

from devstack.ports import BLOCK, anywhere


def test_no_two_processes_are_offered_a_port() -> None:
    """Though nobody listens there yet: not while both live, and from the first block to the last."""
    code = "from devstack.ports import anywhere; print(*anywhere(), flush=True); input()"
    mine = set(islice(anywhere(), 3 * BLOCK))
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        theirs = set(map(int, other.stdout.readline().split()))
        assert len(theirs) > 3 * BLOCK
        assert not theirs & mine
        assert not theirs & set(islice(anywhere(), 10 * BLOCK))
        other.communicate("\n")
