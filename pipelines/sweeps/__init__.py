"""Sweeps: spaces, trials and their tables."""
