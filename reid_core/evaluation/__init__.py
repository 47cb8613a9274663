"""Ranking of a gallery for queries, and its accuracies."""
