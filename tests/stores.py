"""S3 servers on loopback, each with an empty bucket named ``bucket``.

moto's runs in this process and takes any signature.  OpenStack Swift's, as Debian packages it, checks signatures and refuses conditional
puts with 501.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
from moto.server import ThreadedMotoServer

from service.bench.serving import free_port

KEY, SECRET = "shop:clerk", "not-a-real-secret"
"""account and user, and the key, of tempauth; S3's access key and secret"""
REGION, BUCKET = "us-east-1", "bucket"
START_S = 60

COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
user = {user}
log_address = {folder}/none
disable_fallocate = true
fallocate_reserve = 0
"""
STORAGE = "[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
PROXY = """[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
error_suppression_limit = 1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_{user_key} = {secret} .admin
"""


LAUNCH = """
import sys
import swift.common.utils as utils
utils.SWIFT_CONF_FILE, kind, configuration = sys.argv[1:4]
from swift.common.wsgi import run_wsgi
extra = {}
if kind == "object":
    from swift.obj import server
    extra = {"global_conf_callback": server.global_conf_callback}
sys.exit(run_wsgi(configuration, f"{kind}-server", **extra))
"""
"""its own programs look for swift.conf in /etc and nowhere else"""


@dataclass
class S3:
    endpoint: str
    port: int
    user: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        """By which obstore finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.user,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
        }

    def make_bucket(self) -> None:
        client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id=self.user, aws_secret_access_key=self.secret
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()


class OneByOne(ThreadedMotoServer):
    """moto looks whether an object is there and stores it, in two steps: of two conditional puts at the same moment both could win."""

    def start(self) -> None:
        super().start()
        server: Any = self._server
        answer, turn = server.app, threading.Lock()

        def one_by_one(environ: Any, start_response: Any) -> Any:
            with turn:
                return answer(environ, start_response)

        server.app = one_by_one


@contextmanager
def moto(port: int = 0) -> Iterator[S3]:
    server = OneByOne(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        found = S3(f"http://127.0.0.1:{port}", port, "anybody", "anything")
        found.make_bucket()
        yield found
    finally:
        server.stop()


@contextmanager
def swift(folder: Path) -> Iterator[S3]:
    """Its four servers."""
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n")
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    ports = {kind: free_port() for kind in ("account", "container", "object", "proxy")}
    processes = []
    try:
        for kind, port in ports.items():
            common = COMMON.format(port=port, folder=folder, user=user)
            if kind == "proxy":
                body = PROXY.format(region=REGION, user_key=KEY.replace(":", "_"), secret=SECRET)
            else:
                body = STORAGE.format(kind=kind)
                ring = ["swift-ring-builder", f"{folder}/{kind}.builder"]
                for step in (["create", "2", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/disk", "1"], ["rebalance"]):
                    subprocess.run([*ring, *step], env=environment, capture_output=True, check=True)
            (folder / f"{kind}.conf").write_text(common + body)
            log = (folder / f"{kind}.log").open("wb")
            command = ["/usr/bin/python3", "-c", LAUNCH, f"{folder}/swift.conf", kind, f"{folder}/{kind}.conf"]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            log.close()
        found = S3(f"http://127.0.0.1:{ports['proxy']}", ports["proxy"], KEY, SECRET)
        _wait(found.endpoint, folder, processes)
        found.make_bucket()
        yield found
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def _wait(endpoint: str, folder: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        with suppress(httpx.TransportError):
            if httpx.get(f"{endpoint}/", timeout=10).status_code < 500:
                return
        time.sleep(0.2)
    raise RuntimeError("\n".join(path.read_text() for path in folder.glob("*.log")))
