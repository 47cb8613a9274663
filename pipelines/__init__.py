"""All that knows Ray, run folders, logging and flags; one file a verb of the command line.

Ray and OpenMP read their environment once, when they are loaded, so our defaults are set here; what the user
has set stays. Where Ray was imported before this package, it has read its environment already and nothing is changed.
"""

import os
import sys

_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray Train asks its workers so often; 2 s is its own
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # else every round imports torch anew
    "OMP_WAIT_POLICY": "PASSIVE",  # threads of decoders and trainer share the cores: do not spin
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # with it, Ctrl-C gives half a sweep's table as if it were whole
    "RAY_AUTH_MODE": "token",  # said here, since an unset mode means different things to Ray's parts
}
if "ray" not in sys.modules:
    for _name, _value in _DEFAULTS.items():
        os.environ.setdefault(_name, _value)
