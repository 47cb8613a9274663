"""One file a method; see ``reid_core.method`` for the contract."""
