"""HTTP itself: connections, bodies, headers, problems, health. Must not know who asks or what for."""
