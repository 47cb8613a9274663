"""Losses as functions that give one value a query; ``distributed.global_mean`` makes the batch loss."""
