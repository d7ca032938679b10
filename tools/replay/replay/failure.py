"""The one exception a person sees: why nothing could be checked."""


class CannotCheck(Exception):
    """There is no verdict, neither good nor bad; the message is one sentence that says why and what to do."""
