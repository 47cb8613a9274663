"""The network: trunk, pooling, BN neck; its normalisation, its weights."""
