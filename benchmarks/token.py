"""A ServiceAccount token of 600 s, read every half second for twice its life: is one valid at every moment?

kubelet rewrites such a token after 556 s (80 % of its life, then the Pod's next sync); fusevol renews it at 80 % of
its life, up to 10 s of jitter early, without waiting for anything.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.report import Figure, Report
from tests.support.cluster import ApiError, Cluster, ClusterError
from tests.support.instance import running

SUMMARY = "a ServiceAccount token's refresh: gaps in its validity"
NODE = "bench"
NAMESPACE = "bench"
LIFE = 600
"""Seconds: the shortest that the API allows."""

POLL = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=1150.0, help="how long to look (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path(".cache/bench/token.json"), help="result (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """0, 1 if there was a moment without a valid token, 2 if it could not be measured."""
    base = Path(tempfile.mkdtemp(prefix="fusevol-bench-"))
    try:
        with Cluster() as cluster:
            cluster.create_node(NODE)
            cluster.create_namespace(NAMESPACE)
            source = ("--kubeconfig", cluster.node_kubeconfig(NODE))
            with running(base, *source, options=("--node", NODE)) as instance:
                uid = _create_pod(cluster)
                instance.wait(f"pod/{NAMESPACE}/reader")
                path = instance.mountpoint / f"pods/{uid}/volumes/kubernetes.io~projected/token/token"
                report = _measure(path, options.seconds)
    except (ClusterError, ApiError, AssertionError, OSError) as error:
        print(f"bench: could not be measured: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(report.text())
    report.write(options.json)
    return 0 if report.met else 1


def _measure(path: Path, seconds: float) -> Report:
    """Reads the token until `seconds` have passed."""
    seen: list[tuple[float, float]] = []  # (iat, exp) of each token, in order
    ages: list[float] = []  # seconds, of each token when the next was there
    least, invalid = float(LIFE), 0.0
    end, last = time.monotonic() + seconds, time.time()
    while time.monotonic() < end:
        issued, expires = _validity(path.read_text())
        now = time.time()
        if (issued, expires) not in seen:
            if seen:
                ages.append(now - seen[-1][0])
            seen.append((issued, expires))
            print(f"bench: token {len(seen)}, valid for {expires - now:.0f} s", file=sys.stderr, flush=True)
        least = min(least, expires - now)
        invalid += max(0.0, now - max(last, expires))
        last = now
        time.sleep(POLL)
    report = Report("token", machine.describe())
    report.method = [
        f"a projected token of {LIFE} s, read every {POLL:g} s for {seconds:.0f} s; real API server, node identity"
    ]
    report.figures = [
        Figure("time without a valid token", round(invalid, 2), "s", target=0),
        Figure("oldest token in use", round(max(ages, default=0.0), 1), "s", target=LIFE * 0.8 + 2, kubelet=556),
    ]
    report.notes = [f"{len(seen)} tokens; the least validity that was left in a read: {least:.1f} s"]
    return report


def _validity(token: str) -> tuple[float, float]:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return float(claims["iat"]), float(claims["exp"])


def _create_pod(cluster: Cluster) -> str:
    cluster.admin.create({"kind": "ServiceAccount", "metadata": {"name": "reader"}}, NAMESPACE)
    sources = [{"serviceAccountToken": {"path": "token", "expirationSeconds": LIFE}}]
    pod = {
        "kind": "Pod",
        "metadata": {"name": "reader"},
        "spec": {
            "nodeName": NODE,
            "serviceAccountName": "reader",
            "containers": [
                {"name": "main", "image": "busybox", "volumeMounts": [{"name": "token", "mountPath": "/token"}]}
            ],
            "volumes": [{"name": "token", "projected": {"sources": sources}}],
        },
    }
    uid: str = cluster.admin.create(pod, NAMESPACE)["metadata"]["uid"]
    return uid
