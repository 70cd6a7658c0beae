"""GET /livez, /readyz, /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.problems import problem
from service.api.services import InjectedServices
from service.telemetry import metrics as telemetry

router = APIRouter()
FRESH = {"Cache-Control": "no-store"}


@router.get("/livez")
@router.head("/livez", include_in_schema=False)
async def livez(services: InjectedServices) -> Response:
    """200 while the device thread can still work; never depends on load."""
    if not services.pipeline.batcher.alive:
        kind, what = ("device-stuck", "is stuck in a batch") if services.pipeline.batcher.stuck else ("device-dead", "has stopped")
        return problem(503, kind, f"the device thread {what}: restart the process")
    return Response('{"status":"alive"}', 200, FRESH, "application/json")


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
async def readyz(services: InjectedServices) -> Response:
    """200 when the model is warm, whatever the store does: replicas that share it would all be taken out at once, with what they keep."""
    if services.pipeline.batcher.closing:
        return problem(503, "stopping", "the service is stopping", {"Retry-After": "5"})
    return Response('{"status":"ready"}', 200, FRESH, "application/json")


@router.get("/metrics", response_class=Response)
@router.head("/metrics", include_in_schema=False)
async def metrics(services: InjectedServices) -> Response:
    """Prometheus text format."""
    telemetry.QUEUE_OLDEST.set(services.pipeline.batcher.rows.oldest_s())
    return Response(generate_latest(), 200, {**FRESH, "Content-Type": CONTENT_TYPE_LATEST})
