"""Who may do what: API keys with scopes and quotas, and addresses that carry a signature.

Without keys everything is open but deleting; without signing keys renders are public.  Knows nothing of pictures.

A signed address is the canonical one (``service.api.variants``) followed by ``expires``, ``key`` and ``sig``, where sig is the HMAC-SHA-256
of all that stands before ``&sig=``, under the named key, in base64url without padding.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from service.errors import BadSignature, Forbidden, QuotaExceeded, SignatureExpired, Unauthorized
from service.settings import ApiKey, Scope, Settings

LINKS_LAST_UNTIL_THE_NEXT = 3600
"""seconds: links made in the same hour are the same, so that caches know them"""


@dataclass
class _Holder:
    """Whoever has a key."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    quota: Quota | None


class Quota:
    """A bucket of requests that fills at ``per_minute`` and holds a minute's worth.  Counted in this process: each replica has its own."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock()

    def take(self) -> None:
        """Take one; raises QuotaExceeded with the time until there is one again."""
        now = self._clock()
        self._left = min(self._per_minute, self._left + (now - self._at) * self._per_minute / 60)
        self._at = now
        if self._left < 1:
            raise QuotaExceeded(f"more than {self._per_minute} requests a minute", (1 - self._left) * 60 / self._per_minute)
        self._left -= 1


class Signer:
    """Signs addresses and checks them.

    Args:
        keys: by name; the first signs, all are accepted.
        clock: seconds since 1970.
    """

    def __init__(self, keys: dict[str, SecretStr], clock: Callable[[], float] = time.time) -> None:
        self._keys, self._clock = keys, clock

    @property
    def on(self) -> bool:
        return bool(self._keys)

    def sign(self, path: str, lifetime_s: float) -> str:
        """The address with its signature; it lasts for ``lifetime_s`` and up to an hour more."""
        until = self._clock() + lifetime_s
        expires = int(-(-until // LINKS_LAST_UNTIL_THE_NEXT)) * LINKS_LAST_UNTIL_THE_NEXT
        name = next(iter(self._keys))
        signed = _before_signature(path, expires, name)
        return f"{signed}&sig={self._signature(signed, name)}"

    def check(self, path: str, expires: int | None, name: str | None, signature: str) -> tuple[str, int]:
        """The one spelling of a signed address, and the seconds it has left; raises BadSignature or SignatureExpired."""
        if expires is None or name not in self._keys:
            raise BadSignature("a signed address ends with expires, key and sig, the key one that this service knows")
        signed = _before_signature(path, expires, name)
        if not hmac.compare_digest(signature.encode(), self._signature(signed, name).encode()):
            raise BadSignature("the signature is not of this address: path, parameters and expiry are covered, in their canonical order")
        left = expires - int(self._clock())
        if left <= 0:
            raise SignatureExpired("the address has expired: ask for a new one")
        return f"{signed}&sig={signature}", left

    def _signature(self, signed: str, name: str) -> str:
        digest = hmac.digest(self._keys[name].get_secret_value().encode(), signed.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _before_signature(path: str, expires: int, name: str) -> str:
    return f"{path}{'&' if '?' in path else '?'}expires={expires}&key={name}"


class Access:
    """Keys, signatures and quotas of one service."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.signer = Signer(settings.signing_keys)
        self._link_s = settings.link_s
        keys = dict(settings.api_keys)
        if settings.admin_key is not None:
            keys["SDC_ADMIN_KEY"] = ApiKey(secret=settings.admin_key, scopes=["admin"], per_minute=None)
        self._holders = [
            _Holder(
                name,
                _digest(key.secret.get_secret_value()),
                frozenset(key.scopes),
                Quota(key.per_minute, clock) if key.per_minute else None,
            )
            for name, key in keys.items()
        ]
        self._closed: dict[Scope, bool] = {"compress": bool(settings.api_keys), "render": self.signer.on, "admin": True}

    def require(self, scope: Scope, authorization: str | None, signable: bool = False) -> None:
        """Let a request through, and count it; raises Unauthorized, Forbidden or QuotaExceeded.

        Args:
            scope: what it wants to do.
            authorization: the header of that name.
            signable: whether a signature of its address would do instead of a key.
        """
        holder = self._holder(authorization)
        if holder is not None and holder.quota is not None:
            holder.quota.take()
        if not self._closed[scope] or (holder is not None and scope in holder.scopes):
            return
        unsigned = "this address has no signature (the links of a compress reply have one, `sdc sign` makes one), and " if signable else ""
        if holder is not None:
            raise Forbidden(f"{unsigned}the key '{holder.name}' has not the scope '{scope}'")
        if not any(scope in each.scopes for each in self._holders):
            where = "SDC_ADMIN_KEY or SDC_API_KEYS" if scope == "admin" else "SDC_API_KEYS"
            raise Forbidden(f"{unsigned}nobody has a key with the scope '{scope}': set {where}")
        offered = "the key is not known here" if authorization else "no key was sent"
        raise Unauthorized(f"{unsigned}{offered}: this needs one with the scope '{scope}', as Authorization: Bearer KEY")

    @property
    def keepers(self) -> str:
        """Of what was let through to the scope ``render``, in the words of Cache-Control: whoever has a key alone, or every cache."""
        return "private" if self._closed["render"] else "public"

    def link(self, path: str) -> str:
        """An address as a caller is told it: signed where addresses are."""
        return self.signer.sign(path, self._link_s) if self.signer.on else path

    def _holder(self, authorization: str | None) -> _Holder | None:
        """Whose key it is; None for nobody's.  Every key is compared, each in constant time."""
        scheme, _, token = (authorization or "").partition(" ")
        offered = _digest(token.strip())
        found = [holder for holder in self._holders if hmac.compare_digest(holder.digest, offered)]
        return found[0] if found and scheme.lower() == "bearer" else None


def _digest(secret: str) -> bytes:
    """All of one length, so that comparing says nothing about theirs."""
    return hashlib.sha256(secret.encode()).digest()
