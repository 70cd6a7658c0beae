"""Metrics and logs.  May be used by every module, imports none."""
