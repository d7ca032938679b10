"""Test builds: the shipped services with crash points and, if they are told so, by a wrong clock."""

from tests.chaos.builds import clock

clock.apply()  # here, because this runs before any module of ours is imported
