"""Brings the models of a process into memory: its own at the start, others when a file first needs them.

Must not know about HTTP, the queue or where blobs are kept.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from service.batching.refusals import missed
from service.codec.codec import Codec
from service.engine.engine import Engine
from service.engine.network import check_parts
from service.errors import BadModel, DeviceFailed
from service.manifest import read_manifest
from service.settings import Settings

RETRY_AFTER_S = 5
"""told to whom a model that is being loaded comes too late"""


def load_model(settings: Settings) -> tuple[Engine, Codec]:
    """Load everything of a model folder and try it once; raises BadModel or DeviceFailed.  Takes seconds: not on the event loop."""
    engine = Engine(settings.model, settings.device, settings.dtype, None if settings.compile == "auto" else settings.compile == "on")
    codec = Codec(settings.model, engine.manifest)
    engine.check()
    return engine, codec


async def loaded(settings: Settings) -> tuple[Engine, Codec]:
    """``load_model`` beside the event loop, in a thread that ends.

    OpenMP keeps a team for every thread that ever computed, and with more of them than cores its barriers sleep instead of spinning: the
    device's own work then takes a third longer (measured; a small U-Net even twice as long).
    """
    with ThreadPoolExecutor(1) as short_lived:
        return await asyncio.get_running_loop().run_in_executor(short_lived, load_model, settings)


class OtherModel:
    """A model beside the process's own: its files are read and rendered here, and none is made with it.

    Args:
        settings: of the process, but for the model.

    Raises BadModel for a folder that is none, or lacks a part: what can be seen without loading the weights.
    """

    def __init__(self, settings: Settings) -> None:
        # minutes of compiling are for what every request needs
        self._settings = settings.model_copy(update={"compile": "off"})
        self.folder = settings.model
        self.manifest = read_manifest(self.folder)
        self.codec = Codec(self.folder, self.manifest)
        check_parts(self.folder)
        self._engine: Engine | None = None
        self._loading: asyncio.Task[None] | None = None

    @property
    def operation(self) -> str:
        """Of the device: what this model takes is learned apart from what the process's own does."""
        return f"render-{self.manifest.full_name}"

    @property
    def loaded(self) -> bool:
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """Only after ``ready``."""
        assert self._engine is not None
        return self._engine

    async def ready(self, deadline: float = math.inf) -> None:
        """Have the networks loaded, once for all who ask; one who leaves stops nothing.

        Raises DeadlineMissed where that takes longer than until ``deadline``, on the monotonic clock, and DeviceFailed where it fails: the
        next to ask tries again.
        """
        if self.loaded:
            return
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
        left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        done, _ = await asyncio.wait([self._loading], timeout=left_s)
        if not done:
            raise missed(f"model '{self.manifest.name}', which made this file, is being loaded", RETRY_AFTER_S)
        self._loading.result()

    async def _load(self) -> None:
        log, started = structlog.get_logger(), time.monotonic()
        try:
            self._engine, _ = await loaded(self._settings)
        except Exception as error:
            log.exception("a model could not be loaded", model=self.manifest.full_name)
            raise DeviceFailed(
                f"model '{self.manifest.name}', which made this file, could not be loaded: the service's log says why"
            ) from error
        log.info("another model is loaded", model=self._engine.description, seconds=round(time.monotonic() - started, 2))

    async def close(self) -> None:
        """Wait for what is being loaded: a thread cannot be stopped."""
        if self._loading is not None:
            await asyncio.wait([self._loading])


def other_models(settings: Settings) -> dict[bytes, OtherModel]:
    """The models of ``settings.other_models`` by the identities whose files they read; copies of the own and of others are passed over.

    Raises BadModel, for two of one name and version with different entropy profiles too: a file does not say which of them it needs.
    """
    if not settings.other_models:
        return {}
    models: dict[bytes, OtherModel] = {}
    for folder in (settings.model, *settings.other_models):
        model = OtherModel(settings.model_copy(update={"model": folder}))
        first = models.setdefault(model.manifest.model_identity, model)
        if first.codec.code_identity != model.codec.code_identity:
            raise BadModel(f"{first.folder} and {folder} are both {model.manifest.full_name} and differ: give one of them another version")
    named = {model.operation: model for model in models.values()}
    for model in models.values():
        if named[model.operation] is not model:
            raise BadModel(f"{model.folder} and {named[model.operation].folder} are both called {model.manifest.full_name}: rename one")
    own, *others = models
    found = {identity: models[identity] for identity in others}
    for model in list(found.values()):
        for identity in model.codec.reads.keys() - models.keys() - models[own].codec.reads.keys():
            found.setdefault(identity, model)
    return found
