"""The ClusterTrustBundles of one signer that match a selector, as one object (KUBELET.md 8.2).

One list, then a watch with the same selectors that only says that something changed: the next list tells what. There
are few of them and they change rarely.
"""

from __future__ import annotations

import hashlib
import random

import structlog
import trio

from fusevol.agent.sources.kubernetes import schema
from fusevol.agent.sources.kubernetes.client import Client
from fusevol.agent.sources.kubernetes.errors import ApiError, Disconnected, KubernetesError, Undecodable
from fusevol.agent.sources.kubernetes.reflector import Reflector
from fusevol.agent.sources.kubernetes.timing import Timing
from fusevol.agent.sources.source import Sink
from fusevol.model.errors import FusevolError
from fusevol.model.objects import TRUST_BUNDLE_KEY, DeliveredObject, TrustBundleSpec
from fusevol.model.pod import LabelSelector, LabelSelectorRequirement
from fusevol.model.refs import ObjectRef

log = structlog.get_logger(__name__)

BUNDLES = f"{schema.CERTIFICATES_API}/clustertrustbundles"


def selector(labels: LabelSelector) -> str:
    """As the query of a list has it; an empty one selects everything. Raises ValueError for an unknown operator."""
    terms = [f"{key}={value}" for key, value in sorted((labels.match_labels or {}).items())]
    return ",".join(terms + [_term(requirement) for requirement in labels.match_expressions or ()])


def _term(requirement: LabelSelectorRequirement) -> str:
    key, values = requirement.key, ",".join(requirement.values or ())
    match requirement.operator:
        case "In":
            return f"{key} in ({values})"
        case "NotIn":
            return f"{key} notin ({values})"
        case "Exists":
            return key
        case "DoesNotExist":
            return f"!{key}"
    raise ValueError(f"{requirement.operator!r} is not a valid label selector operator")


class BundleReflector(Reflector):
    """A Reflector of `spec`, which `ref` stands for. No selector at all matches nothing."""

    def __init__(
        self, client: Client, sink: Sink, ref: ObjectRef, spec: TrustBundleSpec, timing: Timing, rng: random.Random
    ) -> None:
        super().__init__(client, sink, ref, timing, rng)
        self._spec = spec

    def redeliver(self) -> None:
        self._teller.forget()
        self._interruption.interrupt()

    async def refresh(self) -> None:
        async with self._lock:
            try:
                await self._list()
            except (ApiError, Undecodable) as error:
                self._teller.failed(str(error))

    async def _attempt(self) -> None:
        """A list, and a watch until something changes."""
        try:
            async with self._lock:
                version = await self._list()
            if version is None:
                await trio.sleep_forever()  # nothing can match, until stop
            await self._watch(version)
            self._backoff.reset()
        except Disconnected as error:
            log.debug("watch_lost", object=str(self._ref), error=str(error))
            await trio.sleep(self._backoff.pause())
        except FusevolError as error:
            if isinstance(error, KubernetesError) and not (isinstance(error, ApiError) and error.gone):
                self._teller.failed(str(error))
            await trio.sleep(self._backoff.pause(error.retry_after if isinstance(error, ApiError) else None))

    def _query(self) -> dict[str, str] | None:
        if self._spec.label_selector is None:
            return None
        labels = selector(self._spec.label_selector)
        query = {"fieldSelector": f"spec.signerName={self._spec.signer_name}"}
        return query | ({"labelSelector": labels} if labels else {})

    async def _list(self) -> str | None:
        """Tells the present state; the resourceVersion to watch from. Raises FusevolError. Under _lock."""
        try:
            query = self._query()
        except ValueError as error:
            self._teller.failed(str(error))
            return None
        if query is None:
            self._teller.missing()
            return None
        found = await self._client.get(BUNDLES, schema.trust_bundles, query)
        bundles = found.items or []
        if not bundles:
            self._teller.missing()
            return found.metadata.resource_version
        content = schema.normalised_pem(*(bundle.spec.trust_bundle for bundle in bundles))
        # the list's own version changes with every write of any bundle; this one with what was selected
        identity = ",".join(sorted(f"{bundle.metadata.uid}@{bundle.metadata.resource_version}" for bundle in bundles))
        version = hashlib.sha256(identity.encode()).hexdigest()[:16]
        with self._interruption.hold():
            await self._teller.present(DeliveredObject(self._ref, "", version, False, {TRUST_BUNDLE_KEY: content}))
        return found.metadata.resource_version

    async def _watch(self, version: str) -> None:
        """Returns at the first change, or when the watch ends. Raises FusevolError."""
        query = {**(self._query() or {}), "resourceVersion": version}
        async with self._client.watch(BUNDLES, query) as watch:
            async for event in watch:
                if event.type != "BOOKMARK":
                    return
