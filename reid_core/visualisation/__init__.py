"""Pictures of results; the only user of matplotlib."""
