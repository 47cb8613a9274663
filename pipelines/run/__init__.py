"""A run of `reid train`: the job, its rounds, and the place where they run."""
