"""Feature memories: unit rows that are read by a loss and written after the optimiser step."""
