"""What those hear who are let go without a result, and how they are counted.  Knows nothing of who waits for what."""

from __future__ import annotations

from service.errors import DeadlineMissed, Overloaded
from service.telemetry import metrics


def stopping() -> Overloaded:
    """For everyone who comes when the service closes; not counted, because most of them had been let in."""
    return Overloaded("the service is stopping", retry_after_s=5)


def too_short(needed_s: float, left_s: float) -> DeadlineMissed:
    """For whoever asks for an answer sooner than one picture takes; counted."""
    metrics.REJECTED.labels(reason="deadline-too-short").inc()
    left = f"{1000 * left_s:.0f} ms are" if left_s > 0 else "no time is"
    return DeadlineMissed(f"the deadline cannot be met: {left} left and this needs {1000 * needed_s:.0f} ms by itself", retry_after_s=1)


def missed(detail: str, retry_after_s: int = 1) -> DeadlineMissed:
    """For whoever was let in and overtaken by the deadline; counted."""
    metrics.REJECTED.labels(reason="deadline-passed").inc()
    return DeadlineMissed(detail, retry_after_s=retry_after_s)
