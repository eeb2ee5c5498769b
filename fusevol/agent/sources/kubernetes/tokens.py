"""One ServiceAccountToken, requested for its Pod and kept fresh (KUBELET.md 8.1).

The token itself is not kept: it is handed over and asked for again when it is needed again.
"""

from __future__ import annotations

import random
import time
import urllib.parse
from collections.abc import Callable
from datetime import datetime

import structlog
import trio

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.errors import ApiError, KubernetesError, Undecodable
from fusevol.agent.sources.kubernetes.reflector import Reflector
from fusevol.agent.sources.kubernetes.timing import Timing, quick_retries
from fusevol.agent.sources.source import Sink
from fusevol.model.errors import FusevolError
from fusevol.model.objects import TOKEN_KEY, DeliveredObject, SecretBytes, TokenSpec, token_spec
from fusevol.model.refs import ObjectRef

log = structlog.get_logger(__name__)

LONGEST_USE = 24 * 3600.0
"""Seconds after which a token is renewed, however long it is valid."""

JITTER = 10
"""Whole seconds below this by which a renewal is early."""

SHORTEST_USE = 60.0
"""Seconds before which no token is renewed: to a clock that is ahead of the API server's each new one looks old."""

LONGEST_SLEEP = 60.0
"""Seconds: the wall clock is looked at again, since it may have been set or the machine have slept."""


def renewal(expires: float, seconds: int, jitter: float) -> float:
    """When a token of `seconds` validity that ends at `expires` is to be renewed: after 80 % of its life or 24 hours,
    whichever is first, and up to 10 seconds before (token_manager.go requiresRefresh). Seconds since the epoch."""
    return min(expires - seconds + LONGEST_USE, expires - seconds * 20 // 100) - jitter


def token_request(spec: TokenSpec) -> dict[str, object]:
    """The body of the request: bound to the Pod; without an audience the API server's own."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [spec.audience] if spec.audience else [],
            "expirationSeconds": spec.expiration_seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": spec.pod_name, "uid": spec.pod_uid},
        },
    }


class TokenReflector(Reflector):
    """A Reflector of one ServiceAccountToken. Its version is when it expires, and a count to tell two tokens apart."""

    def __init__(
        self,
        client: Client,
        sink: Sink,
        ref: ObjectRef,
        timing: Timing,
        rng: random.Random,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, sink, ref, timing, rng)
        self._spec = token_spec(ref)
        self._path = (
            f"/api/v1/namespaces/{urllib.parse.quote(ref.namespace, safe='')}/serviceaccounts/"
            f"{urllib.parse.quote(self._spec.service_account, safe='')}/token"
        )
        self._now = now
        self._issued = 0
        self._wanted = True  # now, whatever _renew_at says
        self._renew_at = 0.0  # seconds since the epoch. Under _lock
        self._expires: float | None = None  # of the token that was delivered last. Under _lock

    def redeliver(self) -> None:
        self._wanted = True
        self._interruption.interrupt()

    async def refresh(self) -> None:
        """There is a token, or the first attempt at one has failed."""
        async with self._lock:
            if self._teller.told is None and not self._stopped:
                try:
                    await self._fetch()
                except (ApiError, Undecodable) as error:
                    self._failed(error)

    async def _attempt(self) -> None:
        async with self._lock:
            try:
                if self._wanted or self._now() >= self._renew_at:
                    await self._fetch()
                    self._backoff.reset()
                pause = min(max(0.0, self._renew_at - self._now()), LONGEST_SLEEP)
            except FusevolError as error:  # the API's, or the sink's
                self._wanted = True
                self._failed(error)
                pause = self._backoff.pause(error.retry_after if isinstance(error, ApiError) else None)
        await trio.sleep(pause)

    async def _fetch(self) -> None:
        """Requests a token and delivers it. Raises FusevolError. Under _lock."""
        self._wanted = False  # before the request: a redelivery that is asked for from here on is another one
        early = quick_retries()
        deadline = trio.current_time() + self._timing.forbidden
        while True:
            try:
                answer = await self._client.post(self._path, token_request(self._spec), schema.token_request)
                break
            except ApiError as error:
                # 404: NodeRestriction does not know the new Pod yet
                passing = error.forbidden or error.not_found
                if not passing or self._teller.told is not None or trio.current_time() >= deadline:
                    raise
            await trio.sleep(next(early))
        expires = datetime.fromisoformat(answer.status.expiration_timestamp).timestamp()
        self._issued += 1
        version = f"{answer.status.expiration_timestamp}-{self._issued}"
        token = SecretBytes(answer.status.token.encode())
        delivered = DeliveredObject(self._ref, self._spec.pod_uid, version, False, {TOKEN_KEY: token})
        with self._interruption.hold():
            await self._teller.present(delivered)
        self._expires = expires
        seconds = answer.spec.expiration_seconds or self._spec.expiration_seconds
        due = renewal(expires, seconds, self._rng.randrange(JITTER))
        self._renew_at = max(due, self._now() + SHORTEST_USE)

    def _failed(self, error: FusevolError) -> None:
        """A token that is valid is kept in silence."""
        if not isinstance(error, KubernetesError):
            return
        if self._expires is None:
            self._teller.failed(f"failed to fetch token: {error}")
        elif self._now() >= self._expires:
            name = f"{self._ref.namespace}/{self._spec.service_account}"
            self._teller.failed(f"token {name} expired and refresh failed: {error}")
        else:
            log.warning("token_not_refreshed", service_account=self._spec.service_account, error=str(error))
