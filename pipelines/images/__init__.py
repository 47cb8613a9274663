"""Images of a run: scanned, looked at, decoded in blocks and embedded."""
