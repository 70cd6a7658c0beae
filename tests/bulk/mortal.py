"""A Compressor that is killed once, in the middle of a batch: some of it is stored, and nobody has heard of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.bulk.compressor import Compressor, Job
from service.bulk.rows import Columns
from service.pipeline import Pipeline


async def _nothing(pipeline: Pipeline) -> None:
    pass


class Mortal(Compressor):
    """Dies in the batch that has the source ``last-words``; a file beside the sources says that it has, and who it was."""

    def __init__(self, job: Job) -> None:
        Pipeline.warm_up = _nothing  # type: ignore[method-assign]  # in this process of Ray's, which is for one test
        super().__init__(job)

    def __call__(self, batch: Mapping[str, Any]) -> Columns:
        mark = Path(self._job.base).with_name("killed")
        if "last-words.png" in list(batch["source"]) and not mark.exists():
            super().__call__({name: values[: len(values) // 2] for name, values in batch.items()})
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
