# Environment of every node, read by ~/.bashrc: what `ray start`, and so every worker and job on the node, inherits.
export PATH="$HOME/reid/env/bin:$PATH"

# Nobody without the token may talk to the cluster. cluster.yaml copies the file; it is the same on all nodes.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"

# Idle worker processes are kept for 10 minutes: otherwise every round starts its decoders anew.
export RAY_idle_worker_killing_time_threshold_ms=600000
export RAY_USAGE_STATS_ENABLED=0

# `ray job stop` leaves a run a minute to write its log to the storage; by itself Ray kills it after 3 seconds.
export RAY_JOB_STOP_WAIT_TIME_S=60

# Where presets look for torchvision's ImageNet weights (hub/checkpoints/ below it); nothing is downloaded.
export TORCH_HOME=/shared/torch
