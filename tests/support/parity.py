"""Runs the judge of the golden data (its README says what it compares) on a whole fusevol with a real API server."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.cluster import BINARIES, REPOSITORY, Cluster
from tests.support.instance import running

GOLDEN = REPOSITORY.parent / "shared/golden"
NODE = "node1"
BUNDLES = "certificates.k8s.io/v1beta1/clustertrustbundles"


def main() -> int:
    """The judge's exit status; 2 where the golden data is not there."""
    parser = argparse.ArgumentParser(prog="scripts/parity", description=__doc__)
    parser.add_argument("--cases", type=Path, default=GOLDEN / "cases", help="folder of cases")
    parser.add_argument("--expected", type=Path, default=GOLDEN / "expected", help="folder of recorded trees")
    parser.add_argument("--judge", type=Path, default=GOLDEN / "parity.py", help="the judge")
    parser.add_argument("--out", type=Path, help="keep what was observed here")
    parser.add_argument("--log", type=Path, help="keep fusevol's log here")
    parser.add_argument("-j", type=int, default=4, help="cases at a time")
    parser.add_argument("case", nargs="*", metavar="CASE", help="the beginning of a case's name")
    options = parser.parse_args()
    for needed in (options.cases, options.expected, options.judge):
        if not needed.exists():
            print(f"parity: {needed} does not exist", file=sys.stderr)
            return 2
    cluster = Cluster(
        service_accounts=True,
        feature_gates={"ClusterTrustBundle": True, "ClusterTrustBundleProjection": True},
        runtime_config={BUNDLES: "true"},
    )
    with cluster, tempfile.TemporaryDirectory(prefix="fusevol-parity-") as directory:
        cluster.create_node(NODE)
        base = Path(directory)
        source = ("--kubeconfig", cluster.node_kubeconfig(NODE), "--node", NODE)
        with running(base, *source, options=("-v",)) as instance:
            instance.wait()
            command = [sys.executable, options.judge, "run", "--kubectl", BINARIES / "kubectl"]
            command += ["--kubeconfig", cluster.kubeconfig("admin", ("system:masters",))]
            command += ["--pods-dir", instance.mountpoint / "pods", "--node", NODE, "-j", str(options.j)]
            command += ["--cases", options.cases.resolve(), "--expected", options.expected.resolve()]
            command += ["--out", options.out] if options.out else []
            status = subprocess.run([*map(str, command), *options.case], check=False).returncode
            if options.log:
                options.log.write_text(instance.log)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
