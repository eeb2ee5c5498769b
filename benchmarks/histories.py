"""Random histories of a node against a model of the tree: at rest the mount is what the model says, and at no moment
does a reader miss a key that both neighbouring states have.

Each history creates, changes and deletes Pods, ConfigMaps and Secrets, while the agent is killed and the API server
cannot be reached. Exit code 0 without a difference, 1 with one (the history is printed, for --replay), 2 when something
could not be run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from tests.support import history_runs, processes
from tests.support.cluster import ApiError, Cluster, ClusterError
from tests.support.histories import decode, generate

SUMMARY = "random histories against a model of the tree"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--histories", type=int, default=100, metavar="N", help="how many (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="of each history (%(default)s)")
    parser.add_argument("--lanes", type=int, default=20, metavar="N", help="histories at once (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the histories; printed, so that they can be made again")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the histories of a file, a line each")


def run(options: argparse.Namespace) -> int:
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    if options.replay:
        histories = [decode(line) for line in options.replay.read_text().splitlines() if line.strip()]
    else:
        _say(f"drawing {options.histories} histories, seed {seed}")
        histories = generate(options.histories, options.rounds, seed)
    processes.adopt_orphans()
    base = Path(tempfile.mkdtemp(prefix="fusevol-histories-"))
    total, began = history_runs.Outcome(), time.monotonic()
    try:
        with Cluster() as cluster:
            for first in range(0, len(histories), options.lanes):
                together = histories[first : first + options.lanes]
                outcome = history_runs.run(cluster, base / str(first), together, f"histories-{first}")
                total.add(outcome)
                _say(f"{total.histories} of {len(histories)} histories, {len(total.failed)} with differences")
                for history, lines in outcome.failed:
                    print(f"{history}\n  " + "\n  ".join(lines), flush=True)
                if outcome.log:
                    _say(f"what fusevol logged:\n{outcome.log[-10_000:]}")
    except (ClusterError, ApiError, AssertionError, OSError) as error:
        _say(f"could not be run: {error}")
        return 2
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print("\n".join(f"{name + ':':13}{words}" for name, words in machine.describe().items()))
    print(f"{'method:':13}real kube-apiserver and etcd; whole fusevol; {options.lanes} histories at once on one node")
    print(
        f"{total.histories} histories, {total.operations} operations, {total.kills} kills of the agent, "
        f"{total.outages} outages, {total.reads} reads, {len(total.failed)} differences, "
        f"{time.monotonic() - began:.0f} s, " + (f"from {options.replay}" if options.replay else f"seed {seed}")
    )
    return 1 if total.failed else 0


def _say(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr, flush=True)
