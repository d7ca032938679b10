"""Keeps the kernel from beginning new connections on a listening socket, so that it can be closed without breaking any.

Whoever is in the backlog when a listening socket closes is reset, and between the last `accept` and `close` somebody
always comes. So the door is shut in the kernel first: a socket filter drops every segment that would begin a
connection, and nothing else. Handshakes under way end, and the backlog can be emptied for good. Those who are dropped
try again after a second, as after any lost packet, and are refused then: that breaks no promise.
"""

import contextlib
import ctypes
import socket
import struct
import sys

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which the socket module does not name
_DROP, _PASS = 0, 0xFFFFFFFF
# Classic BPF over the TCP header, as (code, jump if true, jump if false, operand).
_PROGRAM = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN without ACK?
    (0x06, 0, 0, _DROP),
    (0x06, 0, 0, _PASS),
)


def refuse_new(listening: socket.socket) -> bool:
    """Let the kernel begin no more connections there; False where it cannot be told so (it is not Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    with contextlib.suppress(OSError):
        described = struct.pack("HL", len(_PROGRAM), ctypes.addressof(program))
        listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)
        return True
    return False
