"""From features to pseudo labels: exact, linear in memory, never an N x N matrix."""
