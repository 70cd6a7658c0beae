"""Every Prometheus metric of the service, in one place."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS = Counter("sdc_requests_total", "Requests answered.", ["op", "code"])
REQUEST_SECONDS = Histogram("sdc_request_seconds", "Time from request to reply.", ["op"], buckets=_SECONDS)
SLOTS = Gauge("sdc_slots", "Requests that may be at work or waiting at once.")
INFLIGHT = Gauge("sdc_inflight", "Requests at work or waiting.", ["op"])
REJECTED = Counter("sdc_rejected_total", "Requests that were let go without a result.", ["reason"])
COALESCED = Counter("sdc_coalesced_total", "Requests that shared the run of an identical one under way.")
QUEUE_DEPTH = Gauge("sdc_queue_depth", "Items waiting for the device, and pictures for their turn to be begun.", ["op", "lane"])
QUEUE_OLDEST = Gauge("sdc_queue_oldest_seconds", "How long the longest-waiting of them has waited.")
QUEUE_WAIT = Histogram(
    "sdc_queue_wait_seconds",
    "Time an item waited for the device; the first of a picture, for its turn too.",
    ["op", "lane"],
    buckets=_SECONDS,
)
BATCH_SIZE = Histogram("sdc_batch_size", "Items of a batch, padding not counted.", ["op"], buckets=(1, 2, 4, 8, 16, 32))
BATCH_PIXELS = Histogram(
    "sdc_batch_cost_pixels", "Pixels of a batch, padding counted.", ["op"], buckets=tuple(1 << exponent for exponent in range(14, 27, 2))
)
OUT_OF_MEMORY = Counter("sdc_oom_total", "Batches that did not fit into the device's memory and were halved.")
CODERS_ENDED = Counter("sdc_coders_ended_total", "Processes for coding that ended before they were told to, or hung, and were replaced.")
STAGE_SECONDS = Histogram("sdc_stage_seconds", "Time in a stage.", ["stage"], buckets=_SECONDS)
NONFINITE = Counter("sdc_nonfinite_total", "Items computed again in fp32 because the result was not finite.")
RENDER_CACHE = Counter("sdc_render_cache_total", "Rendered pictures looked for, thrown away, or lost to a failing store.", ["result"])
RENDER_CACHE_BYTES = Gauge("sdc_render_cache_bytes", "Bytes of rendered pictures kept, where this process bounds them.")
RENDER_CACHE_MEMORY_BYTES = Gauge("sdc_render_cache_memory_bytes", "Bytes of those of them that are kept in memory too.")
STORE_SECONDS = Histogram("sdc_store_seconds", "Time of a call to the store, tries of it together.", ["op"], buckets=_SECONDS)
STORE_ERRORS = Counter("sdc_store_errors_total", "Calls to the store that failed, or were not made because it had not answered.", ["op"])
STORE_OPEN = Gauge("sdc_store_open", "1 while an object store that did not answer is left alone.", ["access"])
LEASES = Counter("sdc_lease_total", "Renders that several replicas might have made at once.", ["result"])
READY = Gauge("sdc_ready", "1 when the model is loaded and warm.")
BUILD_INFO = Gauge("sdc_build_info", "Always 1.", ["version", "model", "device"])

REASONS = ("slots", "bodies", "queue-full", "deadline-unreachable", "deadline-too-short", "deadline-passed", "client-gone", "stopping")
"""of ``REJECTED``; docs/OPERATIONS.md says what each means"""


def _begin_at_zero(metric: Counter | Gauge, *values: str) -> None:
    """Have the series of these values of the only label from the start: a query must not come back empty, and the first is a rise."""
    for value in values:
        metric.labels(value)


_begin_at_zero(REJECTED, *REASONS)
_begin_at_zero(STORE_OPEN, "read", "write")
_begin_at_zero(STORE_ERRORS, "create", "write", "read", "size", "delete", "list")
_begin_at_zero(RENDER_CACHE, "hit", "miss", "evicted", "failed")
_begin_at_zero(LEASES, "taken", "awaited", "expired", "failed")
