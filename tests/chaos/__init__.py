"""Chaos on the real stack: things die, freeze and fight while units are sold; then everything is checked."""
