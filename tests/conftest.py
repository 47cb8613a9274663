"""Settings of Ray before it is imported, and the one local Ray that the tests marked ``ray`` share."""

import os

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # loopback only; the examples of the README use tokens
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TMPDIR": os.environ.get("RAY_TMPDIR", "/tmp"),  # noqa: S108
}
