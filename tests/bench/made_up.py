"""Results that nobody measured, for tests of what is made of them."""

from __future__ import annotations

import math

from service.bench.results import About, HungUp, LoadReport, Operation, Percentiles, RateReport, Row, Second, Sized, Stage

ABOUT = About(made="2026-01-01T00:00+00:00", machine="abacus", sdc="0", model="bundled", model_identity="00", versions={"pillow": "13"})


def rate_report(needs: dict[str, float], fewer: str) -> RateReport:
    """Three pictures at four sizes, every quality a function of the bytes over what the codec ``needs``; one codec lacks a size."""
    sizes, pictures = [1000, 2000, 4000, 8000], ["a", "b", "c"]
    rows = []
    for picture in pictures:
        for codec, factor in needs.items():
            for size in sizes[1:] if codec == fewer else sizes:
                level = math.log2(size)
                figures = {"psnr": 2 * level, "ms_ssim": level / 20, "ssimulacra2": 9 * level, "feature": 2 - level / 10}
                taken = round(size * factor)
                rows.append(Row(picture=picture, codec=codec, max_bytes=size, bytes=taken, encode_ms=1, decode_ms=1, **figures))
    sized = [Sized(name=name, width=512, height=512) for name in pictures]
    return RateReport(
        about=ABOUT, images="made up", crop=512, sizes=sizes, shown_size=4000, codecs=list(needs), pictures=sized, rows=rows, refused=[]
    )


def load_report(pictures: str) -> LoadReport:
    timeline = [
        Second(at=0, accepted=3, pixels=600_000, refused=1, median_ms=12.0, p95_ms=20.0),
        Second(at=1, accepted=0, pixels=0, refused=7, median_ms=None, p95_ms=None),
        Second(at=2, accepted=2, pixels=500_000, refused=0, median_ms=14.0, p95_ms=21.5),
    ]
    operation = Operation(
        bare={1: 10.0, 2: 11.0},
        alike={1: 12.0, 2: 12.5},
        alone=[9.5, 10.5],
        http=[9.0, 10.0],
        unloaded=Percentiles(median=70, p95=90, p99=95),
        unloaded_count=100,
        deadline_ms=450,
        probe_seconds=15,
        capacity=[8.0, 8.4],
        offered=32.0,
        seconds=60,
        accepted=490,
        refused=1430,
        failed=0,
        lawless=0,
        dropped=2,
        latency=Percentiles(median=300, p95=420, p99=440),
        refusal=Percentiles(median=1, p95=3, p99=50),
        grown_mib=3.2,
        gauges={"sdc_inflight": 0.0},
        batches={"1": 5, "2": 0, "4": 120},
        stages=[Stage(name="queue", count=490, mean_ms=210.25, p95_ms=400), Stage(name="encode", count=490, mean_ms=31.5, p95_ms=44)],
        timeline=timeline,
    )
    hung_up = HungUp(clients=10, seconds=1, inside=9, computed=2, served=5, refused=0, failed=0, gauges={"sdc_inflight": 0.0})
    return LoadReport(
        about=ABOUT,
        pictures=pictures,
        megapixels=0.3,
        alike_side=512,
        saturation=1.5,
        deadline_factor=5,
        operations={"compress": operation, "render": operation.model_copy(update={"capacity": [0.0, 0.0], "offered": 0.0})},
        hung_up=hung_up,
        idle_share=0.002,
        idle_seconds=15,
    )
