"""Wires the application: settings -> store, pipeline -> routes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
from fastapi import FastAPI

from service import __version__
from service.api import blobs, compare, documentation, health, page, pictures, problems
from service.api.access import Access
from service.api.cors import Cors
from service.api.delivery import Delivery
from service.api.door import Door, EarlyReply, Presence
from service.api.middleware import BodyLimit, Telling, Varying
from service.api.services import Services
from service.api.variants import Variants
from service.batching.admission import whole_seconds
from service.errors import SdcError, first_line
from service.pipeline import open_pipeline
from service.settings import Settings
from service.storage.blobs import BlobStore
from service.storage.leases import Leases
from service.storage.objects import address_of, open_store
from service.storage.renders import RenderCache
from service.telemetry import metrics, traces


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application.  Its lifespan loads and warms the model before the first request is taken; a failure stops the start.

    Raises BadParameter for presets that cannot be.
    """
    access = Access(settings)
    variants = Variants(settings.sizes, settings.presets, settings.presets_only)

    def device_died(error: BaseException) -> None:
        """Nothing can be computed any more: stop, so that whoever runs the service starts it again."""
        structlog.get_logger().critical("the device thread died", exc_info=error)
        app.state.failed = True
        app.state.stop()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        log = structlog.get_logger()
        async with AsyncExitStack() as stack:
            try:
                if settings.otlp_endpoint:
                    traces.start(traces.exporter_to(settings.otlp_endpoint))
                    stack.push_async_callback(traces.stop)
                objects = open_store(settings.store_url, settings.store_timeout_s)
                store, cache = BlobStore(objects), RenderCache(objects, settings.render_cache_bytes, settings.render_memory_bytes)
                await store.check()
                cache.open()
                stack.push_async_callback(cache.close)
                leases = Leases(objects, settings.lease_s if settings.render_cache_bytes else 0)
                stack.push_async_callback(leases.close)
                pipeline = await stack.enter_async_context(open_pipeline(settings))
            except SdcError as error:
                because = {"cause": first_line(error.__cause__)} if error.__cause__ else {}
                log.error("start failed", kind=error.kind, detail=error.detail, **because)
                raise
            except Exception:
                log.exception("start failed")
                raise
            app.state.services = Services(pipeline, store, cache, leases, settings, variants, access)
            pipeline.batcher.on_death = device_died
            model, device = pipeline.engine.manifest.full_name, pipeline.engine.device.type
            metrics.BUILD_INFO.labels(version=__version__, model=model, device=device).set(1)
            metrics.READY.set(1)
            others = {"other_models": [other.manifest.full_name for other in pipeline.others.values()]} if pipeline.others else {}
            log.info("ready", model=pipeline.engine.description, **others, store=address_of(settings.store_url).partition("?")[0])
            yield
            metrics.READY.set(0)
        log.info("stopped")

    app = FastAPI(
        title="sdc",
        version=__version__,
        summary="Photographs as a few kilobytes of latent, over HTTP.",
        lifespan=lifespan,
        separate_input_output_schemas=False,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        # spans are ours (service/telemetry): where a process has a global provider, the framework would send its own beside them
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.failed = False
    app.state.stop = partial(os.kill, os.getpid(), signal.SIGTERM)  # the command line has a way that lets it choose its exit code
    routers = {"pictures": pictures.router, "blobs": blobs.router, "health": health.router}
    if settings.page:
        routers |= {"comparison": compare.router, "page": page.make_router()}
        app.state.comparisons = compare.install(settings)
    for tag, router in routers.items():
        app.include_router(router, tags=[tag])
    problems.install(app, list(routers.values()))
    documentation.install(app)

    def retry_after_s() -> int:
        return whole_seconds(app.state.services.pipeline.batcher.predicted_wait_s("bulk"))

    app.add_middleware(Presence)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        Door,
        slots=settings.slots,
        max_bytes=settings.max_bodies_bytes,
        largest_body=settings.max_body_bytes,
        retry_after_s=retry_after_s,
    )
    app.add_middleware(Delivery)
    app.add_middleware(EarlyReply)
    app.add_middleware(Varying)
    app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Telling)
    return app
