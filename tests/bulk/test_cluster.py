"""A real Ray cluster on this machine, as small as it can be."""

import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from service.bulk import cluster
from service.bulk.cluster import Workers, on_cluster
from service.bulk.rows import Row, Source
from service.bulk.sources import listed, understand
from service.cli import app
from service.errors import BadParameter, SdcError
from service.settings import Settings
from tests.bulk.conftest import JobMaker, fill
from tests.bulk.mortal import Mortal

ROOT = Path(__file__).parents[2]
# of Ray itself: what it calls deprecated in its own code, and files that its end closes
RAYS_OWN = ("DeprecationWarning:ray.*", "FutureWarning:ray.*", "UserWarning:ray.*", "ResourceWarning")
pytestmark = [pytest.mark.filterwarnings(f"ignore::{each}") for each in RAYS_OWN]
ONE = Workers(count=1, cpus=1, gpus=0)


@pytest.fixture(scope="module")
def rays() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets are in it
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
        patched.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 << 20, logging_level="error", log_to_driver=False,
            _temp_dir=str(folder),
        )  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("rays")
def test_a_worker_killed_midway_loses_nothing_and_doubles_nothing(
    job: JobMaker, photos_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "BATCH", 8)
    fill(photos_folder, 40)
    (photos_folder / "p20.png").rename(photos_folder / "last-words.png")
    (photos_folder / "twin.png").write_bytes((photos_folder / "p3.png").read_bytes())
    (photos_folder / "bad.jpg").write_bytes(b"no picture")
    sources = list(listed(understand(str(photos_folder)), []))
    batches = on_cluster(job(), sources, ONE, threading.Event(), Mortal)
    rows = [row for batch in batches for row in batch]
    assert (tmp_path / "killed").read_text() != str(os.getpid())
    assert sorted(row.source for row in rows) == sorted(each.source for each in sources)
    assert [row.source for row in rows if row.status == "failed"] == ["bad.jpg"]
    ids = Counter(row.id for row in rows if row.id)
    assert len(ids) == 40
    assert ids.most_common(1)[0][1] == 2
    assert {path.stem for path in (tmp_path / "store" / "blobs").glob("*.sdc")} == set(ids)
    lost = Counter(row.status for row in rows)
    assert lost["known"] >= 4  # what the one that was killed had stored, and the twin
    assert lost["made"] + lost["known"] == 41


@pytest.mark.usefixtures("rays")
def test_the_command_and_a_run_that_is_stopped(
    job: JobMaker, photos_folder: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDC_MODEL", str(small_model))
    monkeypatch.setenv("SDC_DTYPE", "float32")
    out = tmp_path / "out.jsonl"
    command = ["bulk", photos_folder, tmp_path / "store", "--manifest", out, "--ray", "--workers", 1, "--worker-cpus", 1]
    result = CliRunner().invoke(app, [str(each) for each in command])
    assert result.exit_code == 0, result.output
    rows = [Row(**json.loads(line)) for line in out.read_text().splitlines()]
    assert sorted(row.source for row in rows) == [f"p{number}.png" for number in range(5)]
    assert {row.id for row in rows} == {path.stem for path in (tmp_path / "store" / "blobs").glob("*.sdc")}
    stop = threading.Event()
    stop.set()
    stopped = on_cluster(job(), [Source(row.source) for row in rows], ONE, stop, Mortal, wave=2)
    assert [row.status for batch in stopped for row in batch] == ["known"] * 2


@pytest.mark.usefixtures("rays")
def test_what_cannot_be_is_told(job: JobMaker, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="too few for one worker"):
        next(on_cluster(job(), [Source("p0.png")], Workers(cpus=64), threading.Event()))
    broken = job(settings=settings.model_copy(update={"model": tmp_path}))
    with pytest.raises(SdcError, match=r"no sdc\.json"):
        next(on_cluster(broken, [Source("p0.png")], ONE, threading.Event()))


def test_rows_that_are_not_those_asked_for_are_no_result() -> None:
    """Not that Ray does such things."""
    import pyarrow

    from service.bulk.rows import to_columns

    row = Row("a", "a" * 26, "made", 1, 1, 1, 1, None, None)

    class Dataset:
        def __init__(self, *numbers: int) -> None:
            self._numbers = numbers

        def iter_batches(self, **_: object) -> Iterator[pyarrow.Table]:
            for number in self._numbers:
                yield pyarrow.table({"number": [number], **to_columns(Row, [row])})

    once_each = cluster._once_each
    assert list(once_each(Dataset(1, 0), 2, threading.Event())) == [[row], [row]]
    for numbers, words in (((0, 0), "twice"), ((1,), "lost 1 rows")):
        with pytest.raises(SdcError, match=words):
            list(once_each(Dataset(*numbers), 2, threading.Event()))
