import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from service.api.access import Access, Quota, Signer
from service.app import create_app
from service.errors import BadSignature, Forbidden, QuotaExceeded, SignatureExpired
from service.settings import ApiKey, Scope, Settings
from tests.conftest import make_picture, png

PHOTO = png(make_picture(40, 50, 4))
KEYS = {
    "shop": {"secret": "shop-secret-of-some-length", "scopes": ["compress"]},
    "page": {"secret": "page-secret-of-some-length", "scopes": ["render"]},
    "few": {"secret": "few-secret-of-some-length!", "scopes": ["compress", "render"], "per_minute": 3},
    "root": {"secret": "root-secret-of-some-length", "scopes": ["compress", "render", "admin"]},
}
SIGNING = {"k2": "a signing key of some length", "k1": "an older signing key, still good"}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]['secret']}"}


@pytest.fixture(scope="module")
def client(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service with keys and signed addresses."""
    settings = Settings(
        model=small_model, store_url=f"file://{tmp_path_factory.mktemp('store')}", dtype="float32",
        api_keys=json.loads(json.dumps(KEYS)), signing_keys={name: SecretStr(key) for name, key in SIGNING.items()},
    )  # fmt: skip
    with TestClient(create_app(settings), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.fixture(scope="module")
def links(client: TestClient) -> dict[str, str]:
    found: dict[str, str] = client.post("/compress", content=PHOTO, headers=bearer("shop")).json()["links"]
    return found


def path_of(links: dict[str, str]) -> str:
    return links["render"].partition("?")[0]


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", "/compress", None, 401),
        ("POST", "/compress", "page", 403),
        ("POST", "/compress", "shop", 200),
        ("POST", "/decompress", None, 401),
        ("POST", "/blobs", None, 401),
        ("GET", "/blobs/ID", None, 401),
        ("GET", "/blobs/ID", "shop", 403),
        ("GET", "/blobs/ID", "page", 200),
        ("GET", "/blobs/ID/info", None, 401),
        ("GET", "/blobs/ID/info", "page", 200),
        ("DELETE", "/blobs/ID", None, 401),
        ("DELETE", "/blobs/ID", "page", 403),
        ("GET", "/render/ID.webp", None, 401),
        ("HEAD", "/render/ID.webp", None, 401),
        ("GET", "/render/ID.webp", "shop", 403),
        ("GET", "/render/ID.webp", "page", 200),
        ("GET", "/livez", None, 200),
        ("GET", "/metrics", None, 200),
    ],
)
def test_scopes(client: TestClient, links: dict[str, str], method: str, path: str, key: str | None, status: int) -> None:
    path = path.replace("ID", path_of(links).removeprefix("/render/"))
    reply = client.request(method, path, content=PHOTO if method == "POST" else None, headers=bearer(key) if key else {})
    assert reply.status_code == status
    if status == 401:
        assert reply.headers["www-authenticate"].startswith("Bearer")
    if status >= 400:
        assert reply.headers["cache-control"] == "no-store"
        assert method == "HEAD" or reply.json()["type"].startswith("urn:sdc:problem:")


@pytest.mark.parametrize("header", ["Bearer wrong", f"Basic {KEYS['shop']['secret']}", "Bearer", "", "Bearer é"])
def test_a_key_that_nobody_has(client: TestClient, header: str) -> None:
    reply = client.post("/compress", content=PHOTO, headers={"authorization": header.encode()})
    assert (reply.status_code, reply.json()["type"]) == (401, "urn:sdc:problem:unauthorized")


@pytest.mark.parametrize("key", [None, "shop", "wrong"])
def test_who_has_no_key_for_a_render_hears_of_signatures(client: TestClient, links: dict[str, str], key: str | None) -> None:
    """Where an address can carry one; of a blob none can."""
    headers = {} if key is None else bearer(key) if key in KEYS else {"authorization": "Bearer wrong"}
    assert "sdc sign" in client.get(f"{path_of(links)}.webp", headers=headers).json()["detail"]
    refused = client.get(links["blob"], headers=headers).json()["detail"]
    assert "'render'" in refused
    assert "sign" not in refused


@pytest.mark.parametrize(
    ("scope", "advice"), [("render", "set SDC_API_KEYS"), ("compress", "set SDC_API_KEYS"), ("admin", "set SDC_ADMIN_KEY or SDC_API_KEYS")]
)
def test_a_scope_that_nobody_has(scope: Scope, advice: str) -> None:
    """SDC_ADMIN_KEY opens nothing but the scope ``admin``."""
    only: dict[Scope, Scope] = {"render": "compress", "compress": "render", "admin": "compress"}
    key = ApiKey(secret=SecretStr("a secret of some length"), scopes=[only[scope]])
    access = Access(Settings(api_keys={"one": key}, signing_keys={"k1": SecretStr(SIGNING["k1"])}))
    with pytest.raises(Forbidden) as refused:
        access.require(scope, None)
    assert refused.value.detail.endswith(advice)


def test_a_refused_body_is_not_read(client: TestClient) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(1 << 16)

    assert client.post("/compress", content=body()).status_code == 401


def test_links_come_signed(client: TestClient, links: dict[str, str]) -> None:
    for name in ("render", "png", "webp"):
        shown = client.get(links[name])
        assert shown.status_code == 200
        seconds = int(shown.headers["cache-control"].split("=")[1].split(",")[0])
        assert 7 * 86400 <= seconds <= 7 * 86400 + 3600
        again = client.get(links[name], headers={"if-none-match": shown.headers["etag"]})
        assert again.status_code == 304
        assert int(again.headers["cache-control"].split("=")[1].split(",")[0]) <= seconds
        assert client.head(links[name]).status_code == 200
    reply = client.post("/compress", content=PHOTO, headers=bearer("shop"))
    assert client.get(reply.headers["location"]).status_code == 200


def test_what_a_key_opens_is_not_for_shared_caches(client: TestClient, links: dict[str, str]) -> None:
    for path in (f"{path_of(links)}.webp", links["blob"]):
        for method in ("GET", "HEAD"):
            assert client.request(method, path, headers=bearer("page")).headers["cache-control"] == "private, max-age=31536000, immutable"


def test_a_signature_is_of_one_address(client: TestClient, links: dict[str, str]) -> None:
    signed, path = links["webp"], path_of(links)
    query = signed.partition("?")[2]
    sig = query.rpartition("=")[2]
    assert client.get(signed).status_code == 200
    tampered = [
        f"{path}.png?{query}",
        f"{path}?{query}",
        f"/render/{'a' * 26}.webp?{query}",
        f"{path}.webp?w=20&{query}",
        f"{path}.webp?{query.replace('key=k2', 'key=k1')}",
        f"{path}.webp?{query.replace('key=k2', 'key=none')}",
        f"{path}.webp?{query.replace('expires=', 'expires=9')}",
        f"{path}.webp?{query.removesuffix(sig)}{'A' if sig[0] != 'A' else 'B'}{sig[1:]}",
        f"{path}.webp?{query.removesuffix(sig)}",
        f"{path}.webp?sig={sig}",
    ]
    for url in tampered:
        reply = client.get(url)
        assert (reply.status_code, reply.json()["type"]) == (403, "urn:sdc:problem:bad-signature"), url
        assert reply.headers["cache-control"] == "no-store"


def test_another_spelling_of_a_signed_address_leads_to_the_one(client: TestClient, links: dict[str, str]) -> None:
    service = client.app.state.services  # type: ignore[attr-defined]
    signed = service.access.signer.sign(f"{path_of(links)}.webp?w=20&h=10", 600)
    assert client.get(signed).status_code == 200
    path, _, query = signed.partition("?")
    first, second, *rest = query.split("&")
    reply = client.get(f"{path}?{'&'.join([*rest, second, first])}")
    assert (reply.status_code, reply.headers["location"]) == (308, signed)
    assert int(reply.headers["cache-control"].removeprefix("public, max-age=")) <= 600 + 3600


def test_keys_rotate_and_signatures_expire() -> None:
    now = 1_700_000_000.0
    keys = {name: SecretStr(key) for name, key in SIGNING.items()}
    old, new = Signer({"k1": keys["k1"]}, lambda: now), Signer(keys, lambda: now)
    signed = old.sign("/render/x.webp?w=3", 60)
    path, _, query = signed.partition("&expires=")
    expires, name, sig = query.split("&")[0], query.split("&")[1].removeprefix("key="), query.rpartition("=")[2]
    assert new.check(path, int(expires), name, sig) == (signed, int(expires) - int(now))
    assert 60 <= int(expires) - now <= 60 + 3600
    assert "key=k2" in new.sign("/render/x.webp", 60)
    with pytest.raises(BadSignature):
        Signer({"k2": keys["k2"]}, lambda: now).check(path, int(expires), name, sig)
    now = float(expires)
    with pytest.raises(SignatureExpired):
        new.check(path, int(expires), name, sig)


def test_a_signature_that_others_can_make_too() -> None:
    """The vector of docs/API.md."""
    signer = Signer({"k1": SecretStr("correct horse battery staple")}, lambda: 1_799_996_400.0)
    assert signer.sign("/render/abcdefghijklmnopqrstuvwxyz.webp?w=300", 3600) == (
        "/render/abcdefghijklmnopqrstuvwxyz.webp?w=300&expires=1800000000&key=k1&sig=YFN16cKVlQjCr9XrgOnAXcjdntS7a5mKIpu8wd96YRs"
    )


def test_a_quota_is_refilled() -> None:
    now = 0.0
    quota = Quota(3, lambda: now)
    for _ in range(3):
        quota.take()
    with pytest.raises(QuotaExceeded) as refused:
        quota.take()
    assert refused.value.retry_after_s == pytest.approx(20)
    now = 20.1
    quota.take()
    with pytest.raises(QuotaExceeded):
        quota.take()
    now = 1000.0
    for _ in range(3):
        quota.take()
    with pytest.raises(QuotaExceeded):
        quota.take()


def test_a_quota_over_http(client: TestClient) -> None:
    codes = [client.post("/compress", content=PHOTO, headers=bearer("few")).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    reply = client.post("/compress", content=PHOTO, headers=bearer("few"))
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert (reply.json()["type"], reply.headers["cache-control"]) == ("urn:sdc:problem:quota-exceeded", "no-store")
    assert client.post("/compress", content=PHOTO, headers=bearer("shop")).status_code == 200
