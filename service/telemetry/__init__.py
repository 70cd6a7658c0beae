"""Metrics, logs and traces.  May be used by every module, imports none but the errors."""
