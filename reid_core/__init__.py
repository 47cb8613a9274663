"""Unsupervised person re-identification: everything that has a number, without Ray or files of a run."""
