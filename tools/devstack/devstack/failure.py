"""The one error a person meets. It must not carry a traceback to the console."""


class StackError(Exception):
    """One sentence (or two) saying what is wrong and what to do about it; the command prints it and exits 1."""
