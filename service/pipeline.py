"""The two journeys: photo to blob, blob to photo.  HTTP and the command line both call these, so both give the same bytes.

    compress   bytes -> imaging.open -> engine.encode [batched] -> codec.encode -> blob
    render     blob -> codec.decode -> engine.restore, engine.decode [batched] -> imaging.write -> bytes

Must not know about HTTP or where blobs are kept.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np

from service.batching.batcher import Batcher, Ticket
from service.batching.cpu import CpuPool
from service.batching.device import Ending, Operation
from service.batching.waiting import Lane
from service.codec import coders, container
from service.codec.codec import Codec, Frame
from service.codec.coders import Coders, Coding
from service.codec.container import WHOLE_SCALE, Blob, Tiling, scaled
from service.codec.ground import Ground, worth_sending
from service.codec.methods import LATENT
from service.codec.steps import Latent, step_size
from service.engine.engine import Engine, Finish
from service.engine.tiling import Mosaic, border_cells, tiles
from service.errors import BadParameter, CorruptBlob, SizeUnreachable, WrongModel
from service.imaging import flat
from service.imaging.opening import open_picture, picture_size
from service.imaging.picture import Picture, Plane, greyed
from service.imaging.preview import Glance, glance
from service.imaging.resizing import enlarge, plan, resize, shrink
from service.imaging.writing import FORMATS, read_alpha, write_alpha, write_picture
from service.loading import OtherModel, loaded, other_models
from service.manifest import Manifest, Steps
from service.options import DEFAULT_RATE_QUALITY, CompressOptions, RenderOptions
from service.process import tune
from service.settings import Settings
from service.telemetry import metrics, traces

SMALL_PIXELS = 2 << 20
"""a photo up to this size is compressed in the interactive lane unless its sender says otherwise"""
WARM_SIDES = (256, 512)
"""sides of the pictures that are run before the first request is taken"""

VERIFY = "verify"
"""an operation that needs the processor alone"""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Compressed:
    """A blob, as bytes and parsed, a first look at it, and how long each stage took."""

    content: bytes
    blob: Blob
    glance: Glance
    """a first look at the source"""
    seconds: dict[str, float]


@dataclass(frozen=True)
class Rendered:
    content: bytes
    seconds: dict[str, float]


@dataclass(frozen=True)
class Noise:
    """What is known of a latent's error, and how it is to be cleaned."""

    step: np.float32
    """of the uniform quantiser with that error"""
    steps: Steps
    projected: bool
    """whether the latent was quantised with that very step"""


@dataclass(frozen=True)
class Computed:
    """One item of a batch, and what the batch took."""

    result: Any
    seconds: dict[str, float]
    """by stage"""
    batch: traces.There = None
    """the batch's span"""


@dataclass
class Stages:
    """Seconds spent in each named stage of one request."""

    seconds: dict[str, float] = field(default_factory=dict)
    _turn_s: float = 0.0
    """waited for the picture's turn, and not yet counted"""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time spent in the block, waiting included, towards a stage."""
        started, failure = time.perf_counter(), None
        try:
            yield
        except BaseException as error:
            failure = type(error).__name__
            raise
        finally:
            seconds = time.perf_counter() - started
            self._count(stage, seconds)
            traces.stage(stage, seconds, failure=failure)

    async def turn(self, ticket: Ticket) -> None:
        """Wait for the picture's turn to be begun: a part of the queue, counted with the wait of its first item."""
        started = time.perf_counter()
        try:
            self._turn_s = await ticket.turn()
        except BaseException as error:
            traces.stage("queue", time.perf_counter() - started, failure=type(error).__name__)
            raise
        if self._turn_s:
            traces.stage("queue", self._turn_s)

    async def on_device(self, submitted: Awaitable[Computed]) -> Any:
        """Wait for the device: what it took is told apart from the time until then, which is the queue's."""
        started = time.perf_counter()
        try:
            computed = await submitted
        except BaseException as error:
            traces.stage("queue", time.perf_counter() - started, failure=type(error).__name__)
            raise
        waited, later = time.perf_counter() - started, sum(computed.seconds.values())
        queued = max(0.0, waited - later)
        self._count("queue", self._turn_s + queued)
        self._turn_s = 0.0
        traces.stage("queue", queued, later)
        for stage, seconds in computed.seconds.items():
            later -= seconds
            self._count(stage, seconds)
            traces.stage(stage, seconds, later, batch=computed.batch)
        return computed.result

    def _count(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        metrics.STAGE_SECONDS.labels(stage=stage).observe(seconds)


def name_of(*parts: bytes) -> str:
    """26 lower-case base32 characters of SHA-256 over the digests of the parts: digests, so that no part can run into the next."""
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    return base64.b32encode(digest).decode().lower()[:26]


def _seed(source: bytes) -> int:
    """Of a photo's dither."""
    return int.from_bytes(hashlib.sha256(source).digest()[:4], "little")


class Pipeline:
    """Engine, codec and queue of one model, put together; and the other models whose files are rendered, by their identity."""

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        batcher: Batcher,
        settings: Settings,
        others: Mapping[bytes, OtherModel] = MappingProxyType({}),
        coding: Coding = coders.here,
    ) -> None:
        self.engine, self.codec, self.batcher, self.settings, self.others = engine, codec, batcher, settings, others
        self._coding = coding
        self._codecs = dict.fromkeys(codec.reads, codec) | {identity: other.codec for identity, other in others.items()}

    # -- names

    def id_of(self, source: bytes, options: CompressOptions) -> str:
        """The id of a photo compressed with these options by this model: known before any work."""
        return name_of(b"photo", source, options.canonical().encode(), self.codec.code_identity, self.codec.model_identity)

    def id_of_blob(self, content: bytes) -> str:
        """The id of an uploaded blob: its own digest."""
        return name_of(b"blob", content)

    def variant(self, blob_id: str, options: RenderOptions) -> str:
        """Names a render before it is made: id, parameters, model and pixel decoder, equal on every replica."""
        asked = [options.extension, f"s{self.steps_of(options)}"]
        if not FORMATS[options.extension].lossless:
            asked.append(f"q{options.quality}")
        if options.box is not None:
            asked.append(str(options.box))
        return ".".join((blob_id, *asked, self.codec.model_identity.hex(), self.engine.decoder_name))

    def steps_of(self, options: RenderOptions) -> Steps:
        """U-Net steps; raises MethodUnavailable for the article's where no model here has its latent."""
        if options.steps == "article" and not any(other.codec.has_palette for other in self.others.values()):
            self.codec.require_palette()
        return self.engine.manifest.default_steps if options.steps is None else options.steps

    # -- admission

    def refuse_hopeless(self, journey: Literal["compress", "render"], deadline: float, lane: Lane | None = None) -> None:
        """Raise Overloaded where it is plain that not even a small picture's journey would end before the deadline."""
        self.batcher.refuse_hopeless("encode" if journey == "compress" else journey, deadline, lane or "interactive")

    # -- photo to blob

    async def compress(self, source: bytes, options: CompressOptions, lane: Lane | None = None, deadline: float = math.inf) -> Compressed:
        """Bytes of a picture to a blob.

        Args:
            source: a picture of an accepted type.
            options: what the blob shall be.
            lane: who goes first, and nothing else; None is ``interactive`` for a small picture and ``bulk`` for a large one.
            deadline: on the monotonic clock; past it the blob is of no use.

        Raises the errors of ``open_picture``, MethodUnavailable, SizeUnreachable and Overloaded.
        """
        if options.method == "palette":
            self.codec.require_palette()
        stages = Stages()
        with stages.timed("header"):
            # not on the processor's threads: who is to be refused should hear it without waiting in their row
            width, height = await asyncio.to_thread(picture_size, source, self.settings.max_pixels)
        lane = lane or ("interactive" if width * height <= SMALL_PIXELS else "bulk")
        manifest, scale = self.engine.manifest, WHOLE_SCALE
        if options.max_bytes is not None and options.method == "latent":
            scale = self.codec.first_scale(width, height, options.max_bytes)
        coded = scaled(width, height, scale)
        tiling = _tiling(manifest, *coded)
        submitted = _submitted_pixels(manifest, *coded, tiling)
        padded_pixels, largest = _padded_pixels(manifest, width, height), 0 if tiling else submitted
        with self.batcher.admit("encode", padded_pixels, lane, deadline, submitted, largest=largest) as ticket:
            await stages.turn(ticket)
            with stages.timed("open"):
                picture, grey, padded, first_look = await ticket.aside(lambda: self._open(source, scale))
                seed = await ticket.aside(partial(_seed, source), finishing=True) if options.dither else None
            frame = Frame(picture.width, picture.height, seed=seed, scale=scale, grey=grey)
            blob = await self._coded(picture, padded, frame, options, stages, ticket)
        return Compressed(container.write(blob), blob, first_look, stages.seconds)

    async def _coded(self, picture: Picture, padded: Plane, frame: Frame, options: CompressOptions, stages: Stages, ticket: Ticket) -> Blob:
        """Encode and code, and once more at a smaller scale for as long as that is better."""
        while True:
            frame = replace(frame, tiling=_tiling(self.engine.manifest, *frame.coded_size))
            latent = await self._encode(padded, frame, options.method == "palette", stages, ticket)
            with stages.timed("code"):
                if picture.alpha is not None and frame.alpha is None:
                    frame = replace(frame, alpha=await ticket.aside(partial(write_alpha, picture.alpha), finishing=True))
                coded = await ticket.aside(partial(self._code, latent, padded, frame, options), finishing=True)
            if isinstance(coded, Blob):
                return coded
            frame = replace(frame, scale=coded)
            with stages.timed("open"):
                padded = await ticket.aside(partial(self._padded, picture, coded), finishing=True)

    def _open(self, source: bytes, scale: int) -> tuple[Picture, bool, Plane, Glance]:
        """The picture, whether it is grey, what the network shall see of it, and a first look at it."""
        picture = open_picture(source, self.settings.max_pixels)
        return picture, picture.grey, self._padded(picture, scale), glance(picture)

    def _padded(self, picture: Picture, scale: int) -> Plane:
        """The colours of a picture at a scale, with what the network shall see around them."""
        width, height = scaled(picture.width, picture.height, scale)
        factor = self.engine.manifest.downscale
        border = 0 if _tiling(self.engine.manifest, width, height) else border_cells(width, height) * factor
        sides = ((border, -height % factor + border), (border, -width % factor + border), (0, 0))
        return np.pad(shrink(picture.rgb, width, height), sides, mode="edge")

    def _code(self, latent: Latent, padded: Plane, frame: Frame, options: CompressOptions) -> Blob | int:
        """The blob, or the smaller scale at which the picture is better coded."""
        if options.method == "palette":
            blob: Blob = self._coding(self.codec, "encode_palette", latent, frame, options.max_bytes)
        elif options.max_bytes is not None:
            better = self.codec.better_scale(latent, frame, options.max_bytes)
            if better != frame.scale:
                return better
            frame = replace(frame, ground=self._ground(padded, frame))
            try:
                blob = self._coding(self.codec, "encode_within", latent, frame, options.max_bytes)
            except SizeUnreachable:
                smaller = self.codec.smaller_scale(frame)
                if smaller == frame.scale:
                    raise
                return smaller
        else:
            frame = replace(frame, ground=self._ground(padded, frame))
            quality = DEFAULT_RATE_QUALITY if options.quality is None else options.quality
            blob = self._coding(self.codec, "encode", latent, frame, self.engine.manifest.rate_points.step_index(quality))
        return blob

    def _ground(self, padded: Plane, frame: Frame) -> Ground | None:
        """The flat ground of what the network saw, where that is the picture alone."""
        manifest = self.engine.manifest
        if not manifest.flat_ground or frame.seed is not None or border_cells(*frame.coded_size):
            return None
        found = flat.find(padded, manifest.downscale)
        return None if found is None else worth_sending(*found)

    async def _encode(self, padded: Plane, frame: Frame, sampled: bool, stages: Stages, ticket: Ticket) -> Latent:
        factor, tiling = self.engine.manifest.downscale, frame.tiling
        width, height = frame.coded_size
        if tiling is None:
            whole = await self._submit_encode(padded, sampled, stages, ticket)
            border = border_cells(width, height)
            inner = slice(border, -border or None)
            return np.ascontiguousarray(whole[:, inner, inner])
        latent = np.empty(self.codec.latent_shape(width, height), np.float32)
        mosaic = Mosaic(latent.transpose(1, 2, 0), tiling.margin // factor // 2)
        for tile in tiles(latent.shape[1], latent.shape[2], tiling.side // factor, tiling.margin // factor):
            rows, columns = tile.rows, tile.columns
            window = padded[
                rows.window_start * factor : rows.window_end * factor, columns.window_start * factor : columns.window_end * factor
            ]
            part = await self._submit_encode(np.ascontiguousarray(window), sampled, stages, ticket)
            await ticket.aside(partial(mosaic.put, tile, part.transpose(1, 2, 0)), finishing=True)
        return latent

    async def _submit_encode(self, pixels: Plane, sampled: bool, stages: Stages, ticket: Ticket) -> Latent:
        height, width = pixels.shape[:2]
        encoded: Latent = await stages.on_device(ticket.submit((height, width, sampled), (pixels, sampled), height * width))
        return encoded

    # -- blob to photo

    def parse(self, content: bytes) -> Blob:
        """Read a blob's container and check that it can be decoded here; raises the errors of ``container.parse``, WrongModel."""
        blob = container.parse(content, self.settings.max_pixels)
        codec = self.codec_of(blob)
        codec.check(blob)
        _check_tiling(blob, codec.manifest)
        return blob

    def codec_of(self, blob: Blob) -> Codec:
        """The codec of the model that made a blob; raises WrongModel where it is none of this process's."""
        codec = self._codecs.get(blob.model_identity)
        if codec is not None:
            return codec
        known = ", ".join(f"'{codec.reads[identity]}' ({identity.hex()})" for identity, codec in self._codecs.items())
        raise WrongModel(f"this file was made with model {blob.model_identity.hex()}; this service has {known}")

    async def verify(self, blob: Blob, deadline: float = math.inf) -> None:
        """Decode everything but the pixels, which for a file made to be slow takes as long as they do.

        Raises CorruptBlob, and the errors of ``Batcher.admit``.
        """
        codec = self.codec_of(blob)
        seen = (blob.width, blob.height) if container.ALPHA in blob.sections else blob.coded_size
        with self.batcher.admit(VERIFY, _padded_pixels(codec.manifest, *seen), "bulk", deadline) as ticket:
            await ticket.aside(lambda: self._coding(codec, "decode", blob))
            if container.ALPHA in blob.sections:
                await ticket.aside(lambda: read_alpha(blob.sections[container.ALPHA], blob.width, blob.height))

    async def render(self, content: bytes, options: RenderOptions, deadline: float = math.inf) -> Rendered:
        """Blob to the bytes of a picture, before ``deadline`` on the monotonic clock."""
        stages, steps = Stages(), self.steps_of(options)
        blob = self.parse(content)
        largest_side = FORMATS[options.extension].largest_side
        canvas = (blob.width, blob.height) if options.box is None else plan(blob.width, blob.height, options.box).canvas
        if max(canvas) > largest_side:
            raise BadParameter(f"{options.extension} holds {largest_side} pixels a side at most: ask for another format")
        with await self._admit_render(blob, steps, stages, deadline) as ticket:
            picture = await self._restore(blob, steps, stages, ticket)
            with stages.timed("write"):
                written = await ticket.aside(lambda: _write(picture, options), finishing=True)
        return Rendered(written, stages.seconds)

    async def restore(self, blob: Blob, steps: Steps) -> Picture:
        """Blob to pixels."""
        stages = Stages()
        with await self._admit_render(blob, steps, stages, math.inf) as ticket:
            return await self._restore(blob, steps, stages, ticket)

    async def _admit_render(self, blob: Blob, steps: Steps, stages: Stages, deadline: float) -> Ticket:
        """Let a blob in, its model loaded; raises the errors of ``Batcher.admit`` and ``OtherModel.ready``, MethodUnavailable."""
        codec, other = self.codec_of(blob), self.others.get(blob.model_identity)
        if steps == "article":
            codec.require_palette()
        if other is not None and not other.loaded:
            with stages.timed("load"):
                await other.ready(deadline)
        operation = "render" if other is None else other.operation
        submitted = _submitted_pixels(codec.manifest, *blob.coded_size, blob.tiling)
        padded_pixels, largest = _padded_pixels(codec.manifest, blob.width, blob.height), 0 if blob.tiling else submitted
        return self.batcher.admit(operation, padded_pixels, "interactive", deadline, submitted, steps, largest)

    async def _restore(self, blob: Blob, steps: Steps, stages: Stages, ticket: Ticket) -> Picture:
        alpha, codec = None, self.codec_of(blob)
        await stages.turn(ticket)
        with stages.timed("read"):
            latent, ground = await ticket.aside(lambda: self._coding(codec, "decode_all", blob))
            if container.ALPHA in blob.sections:
                alpha = await ticket.aside(lambda: read_alpha(blob.sections[container.ALPHA], blob.width, blob.height))
        rgb = await self._decode(latent, blob, steps, stages, ticket)
        if ground is not None or blob.grey or blob.scale != WHOLE_SCALE:
            with stages.timed("write"):
                rgb = await ticket.aside(partial(_finished, rgb, blob, ground, codec.manifest.downscale), finishing=True)
        return Picture(rgb, alpha)

    async def _decode(self, latent: Latent, blob: Blob, steps: Steps, stages: Stages, ticket: Ticket) -> Plane:
        factor = self.codec_of(blob).manifest.downscale
        noise = Noise(np.float32(step_size(blob.step_index)), steps, blob.method == LATENT)
        width, height = blob.coded_size
        if blob.tiling is None:
            cells = border_cells(width, height)
            border = cells * factor
            surrounded = np.pad(latent, ((0, 0), (cells, cells), (cells, cells)), mode="edge")
            whole = await _submit_render(surrounded, noise, factor, stages, ticket)
            return np.ascontiguousarray(whole[border : border + height, border : border + width])
        side, margin = blob.tiling.side, blob.tiling.margin
        canvas = np.empty((latent.shape[1] * factor, latent.shape[2] * factor, 3), np.uint8)
        mosaic = Mosaic(canvas, margin // 2)
        windows = tiles(latent.shape[1], latent.shape[2], side // factor, margin // factor)
        for cell, tile in zip(windows, tiles(canvas.shape[0], canvas.shape[1], side, margin), strict=True):
            window = latent[:, cell.rows.window, cell.columns.window]
            piece = await _submit_render(np.ascontiguousarray(window), noise, factor, stages, ticket)
            await ticket.aside(partial(mosaic.put, tile, piece), finishing=True)
        return await ticket.aside(partial(np.ascontiguousarray, canvas[:height, :width]), finishing=True)

    # -- plumbing

    async def warm_up(self) -> None:
        """Run every operation on the device's thread, at both batch sizes and for a small and a middling picture.

        Raises DeviceFailed.
        """
        with self.engine.warming():
            await self._warm_up()

    async def _warm_up(self) -> None:
        factor, channels = self.engine.manifest.downscale, self.engine.manifest.latent_channels
        steps, twice = self.engine.manifest.default_steps, self.engine.makes_kernels
        for side in WARM_SIDES:
            height = width = side // factor * factor
            pixels = np.zeros((height, width, 3), np.uint8)
            await self.batcher.warm_up("encode", (height, width, False), (pixels, False), height * width, twice)
            latent = np.zeros((channels, height // factor, width // factor), np.float32)
            noise = Noise(np.float32(1), steps, True)
            await self.batcher.warm_up("render", (*latent.shape[1:], steps, True), (latent, noise), height * width, twice, kind=steps)

    async def close(self) -> None:
        await self.batcher.close()
        for other in self.others.values():
            await other.close()


def _tiling(manifest: Manifest, width: int, height: int) -> Tiling | None:
    """How a picture that is coded at this size is cut."""
    rule = manifest.tiling
    return Tiling(rule.side, rule.margin) if width * height > rule.untiled_pixels else None


def _padded_pixels(manifest: Manifest, width: int, height: int) -> int:
    factor = manifest.downscale
    return -(-width // factor) * -(-height // factor) * factor**2


def _submitted_pixels(manifest: Manifest, width: int, height: int, tiling: Tiling | None) -> int:
    """What the networks see of a picture: the overlaps of its tiles, and a small one's border, counted too."""
    factor = manifest.downscale
    rows, columns = -(-height // factor), -(-width // factor)
    if tiling is not None:
        return sum(tile.positions for tile in tiles(rows, columns, tiling.side // factor, tiling.margin // factor)) * factor**2
    border = 2 * border_cells(width, height)
    return (rows + border) * (columns + border) * factor**2


def _finished(rgb: Plane, blob: Blob, ground: Ground | None, factor: int) -> Plane:
    """What the decoder gives, without what it cannot know: the ground's colour, that there is none, the picture's own size."""
    if ground is not None and ground.colour is not None:
        rgb = flat.lay(rgb, ground.mask, ground.colour, factor)
    if blob.grey:
        rgb = greyed(rgb)
    return rgb if blob.scale == WHOLE_SCALE else enlarge(rgb, blob.width, blob.height)


async def _submit_render(latent: Latent, noise: Noise, factor: int, stages: Stages, ticket: Ticket) -> Plane:
    height, width = latent.shape[1:]
    shape, pixels = (height, width, noise.steps, noise.projected), height * width * factor**2
    rendered: Plane = await stages.on_device(ticket.submit(shape, (latent, noise), pixels))
    return rendered


def _write(picture: Picture, options: RenderOptions) -> bytes:
    sized = picture if options.box is None else resize(picture, options.box)
    return write_picture(sized, options.extension, options.quality)


def _check_tiling(blob: Blob, manifest: Manifest) -> None:
    """Refuse a blob that would put more on the device at once than any that this service writes."""
    downscale, most = manifest.downscale, manifest.tiling.untiled_pixels
    if blob.tiling is None:
        width, height = blob.coded_size
        if width * height > most:
            raise CorruptBlob("a picture of this size must be tiled")
        return
    side, margin = blob.tiling.side, blob.tiling.margin
    if side % downscale or margin % downscale or (side + 2 * margin) ** 2 > most:
        raise CorruptBlob(f"tiles of {side} + 2 x {margin} pixels cannot be decoded")


def _traced(seconds: dict[str, float]) -> traces.There:
    """Note the stages of a batch that have just ended, one after the other, under its span; returns that."""
    later = sum(seconds.values())
    for stage, each in seconds.items():
        later -= each
        traces.stage(stage, each, later)
    return traces.here()


def _encode(engine: Engine, items: Sequence[tuple[Plane, bool]]) -> Ending:
    return partial(_computed, engine.begin_encode([pixels for pixels, _ in items], sampled=items[0][1]))


def _render(engine: Engine, items: Sequence[tuple[Latent, Noise]]) -> Ending:
    _, first = items[0]
    steps = np.array([noise.step for _, noise in items], np.float32)
    return partial(_computed, engine.begin_render([latent for latent, _ in items], steps, first.steps, first.projected))


def _computed(finish: Finish) -> Sequence[Computed]:
    results, seconds = finish()
    batch = _traced(seconds)
    return [Computed(result, seconds, batch) for result in results]


def _render_with(other: OtherModel, items: Sequence[tuple[Latent, Noise]]) -> Ending:
    return _render(other.engine, items)


def device_operations(engine: Engine) -> dict[str, Operation]:
    """What the device is given: lists of items alike in shape and in what is to be done; in the end lists of results come of them."""
    return {"encode": partial(_encode, engine), "render": partial(_render, engine)}


@asynccontextmanager
async def open_pipeline(settings: Settings, *, warm: bool = True) -> AsyncIterator[Pipeline]:
    """A pipeline with its own model loaded, closed in order at the end.

    ``warm``: whether full batches are run first, and processes started for coding.  That takes as long as some tens of pictures, and spares
    the first requests of a service the making of kernels and guesses about durations; for a picture or two it is the longest part of the
    work.
    """
    tune()
    others = other_models(settings)
    engine, codec = await loaded(settings)
    operations = device_operations(engine) | {other.operation: partial(_render_with, other) for other in others.values()}
    async with AsyncExitStack() as stack:
        coding: Coding = coders.here
        count = settings.cpu_workers if settings.coders is None else settings.coders
        if warm and count:
            coding = Coders(count)
        processor = CpuPool(settings.cpu_workers)
        largest = engine.batch_of(settings.max_batch)
        batcher = Batcher(operations, largest, settings.max_queued_pixels, settings.max_delay_ms / 1000, processor, processor_only=[VERIFY])
        pipeline = Pipeline(engine, codec, batcher, settings, others, coding)
        stack.push_async_callback(pipeline.close)
        if isinstance(coding, Coders):
            stack.push_async_callback(asyncio.to_thread, coding.close)  # first: a thread may wait for one that hangs
        if warm:
            await pipeline.warm_up()
        yield pipeline
