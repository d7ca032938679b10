"""Traces, metrics and logs of every Stampede process.

`tracing` (spans after the fact), `logs` (JSON lines), `ops` (health and metrics listener), `names` (every name).
Import from those modules.
"""
