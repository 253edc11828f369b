"""Ray: lanes that hold a base and train, a broker between them and Ray Tune, and the driver of a search."""

import os

# Read by Ray when it is imported or its processes start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # its kill crashes Tuner.fit in spite of max_failures
os.environ.setdefault("RAY_worker_niceness", "0")  # the lane is what the machine is for
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the registry records; no CSV or TensorBoard files
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial has no metric, on purpose
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is handled here
