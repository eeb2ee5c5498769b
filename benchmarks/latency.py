"""How long it takes until a change at the API server can be read, and what fusevol needs for it.

A real API server, the node's own identity under the Node authorizer, and the whole of fusevol as a user starts it. The
targets are those of the README; kubelet's numbers were measured on a machine of 2 cores with an API server of the same
version. Exit code 0 when all was measured, 2 when something could not be; with --check 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from benchmarks import chart, machine, usage
from benchmarks.node import Node, Pod, started
from benchmarks.reader import PAUSE, ROUND_PAUSE, Reader, TimedOut, wait_for
from benchmarks.report import Figure, Report, percentile
from tests.support.cluster import ApiError, ClusterError

SUMMARY = "API write to readable content, memory, idle CPU"
RESULT = Path(__file__).resolve().parents[1] / ".cache" / "bench" / "latency.json"

PARTS = ("updates", "pod", "pods", "memory", "cpu")
BETWEEN_UPDATES = (0.02, 0.12)  # seconds: drawn at random, so that nothing runs in step with the bench
POSTING = 0.007  # seconds from one POST to the next at least: 50 took the kubelet's bench 0.35 s
SETTLE = 5.0  # seconds before memory and CPU are measured
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--updates", type=_positive, default=300, metavar="N", help="of each object (%(default)s)")
    parser.add_argument("--repeat", type=_positive, default=30, metavar="N", help="single Pods (%(default)s)")
    parser.add_argument("--pods", type=_positive, default=50, metavar="N", help="Pods at once (%(default)s)")
    parser.add_argument("--idle", type=_positive, default=20, metavar="S", help="seconds of idling (%(default)s)")
    parser.add_argument("--only", type=_parts, default=PARTS, metavar="PART,...", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, default=RESULT, metavar="PATH", help="default: .cache/bench/latency.json")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw the figures as SVG")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a target is missed")


def run(options: argparse.Namespace) -> int:
    report = Report("latency", machine.describe())
    _say("starting the API server and fusevol")
    try:
        with started() as node:
            _measure(node, options, report)
    except (ClusterError, ApiError, TimedOut, AssertionError, OSError) as error:
        _say(f"could not be measured: {error}")
        return 2
    print(report.text())
    report.write(options.json)
    _say(f"written: {options.json}")
    if options.chart:
        chart.write(options.chart, "fusevol and kubelet on 2 cores", report.figures)
        _say(f"drawn: {options.chart}")
    return 1 if options.check and not report.met else 0


def _measure(node: Node, options: argparse.Namespace, report: Report) -> None:
    report.method.append("real kube-apiserver and etcd on this machine; system:node identity; whole fusevol, pyfuse3")
    if "updates" in options.only:
        _updates(node, options.updates, report)
    if "pod" in options.only:
        _single_pods(node, options.repeat, report)
    many = {"pods", "memory", "cpu"} & set(options.only)
    if many:
        _many_pods(node, options.pods, report, wanted="pods" in many)
        _say(f"settling for {SETTLE:g} s")
        time.sleep(SETTLE)
    if "memory" in many:
        _memory(node, options.pods, report)
    if "cpu" in many:
        _idle(node, options.idle, options.pods, report)


def _updates(node: Node, count: int, report: Report) -> None:
    """API write returned → the new content read."""
    report.method.append(
        f"updates: {count} of one object, {BETWEEN_UPDATES[0] * 1e3:g}-{BETWEEN_UPDATES[1] * 1e3:g} ms apart; from the "
        f"write's return on the same thread tries open+read+close through ..data, {PAUSE * 1e3:g} ms apart"
    )
    node.create_objects("updated")
    pod = node.post("updated")
    _wait_for_all(pod)
    paths = dict(zip(("ConfigMap", "Secret"), pod.files, strict=False))
    pauses = random.Random(0)
    for kind, median, longest in (("ConfigMap", 48_800.0, 82_400.0), ("Secret", 43_900.0, 79_600.0)):
        taken = []
        for number in range(count):
            _progress(f"{kind} update", number, count)
            content = f"{kind} {number}"
            written = node.write(kind, pod.name, content)
            taken.append((wait_for(paths[kind], content.encode()) - written) * 1e3)
            time.sleep(pauses.uniform(*BETWEEN_UPDATES))
        name = f"{kind} write -> readable"
        report.samples[name] = taken
        report.figures += [
            Figure(f"{name}, p50", percentile(taken, 50), "ms", 10.0, median),
            Figure(f"{name}, p99", percentile(taken, 99), "ms", 50.0),
            Figure(f"{name}, max", max(taken), "ms", None, longest),
        ]
    node.delete(pod)


def _single_pods(node: Node, count: int, report: Report) -> None:
    """Pod POST returned → a file of each volume read, one Pod at a time."""
    report.method.append(
        f"1 Pod: {count} times, with objects of its own that fusevol has not seen; read as above; then deleted"
    )
    taken = []
    for number in range(count):
        _progress("Pod", number, count)
        node.create_objects(f"single-{number}")
        pod = node.post(f"single-{number}")
        taken.append((_wait_for_all(pod) - pod.posted) * 1e3)
        node.delete(pod)
    name = "Pod POST -> 3 volumes, 1 Pod"
    report.samples[name] = taken
    report.figures += [
        Figure(f"{name}, p50", percentile(taken, 50), "ms", 50.0, 192.0),
        Figure(f"{name}, max", max(taken), "ms", None, 291.0),
    ]


def _many_pods(node: Node, count: int, report: Report, *, wanted: bool) -> None:
    """Many Pods posted one right after the other, each with its own objects. Leaves them there."""
    for number in range(count):
        _progress("objects of Pod", number, count)
        node.create_objects(f"many-{number}")
    _say(f"posting {count} Pods")
    pods = []
    with Reader() as reader:
        start = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, start + number * POSTING - time.monotonic()))
            pods.append(node.post(f"many-{number}"))
            reader.expect(pods[-1].uid, pods[-1].files)
        posting = time.monotonic() - start
        ready = reader.finish()
    if not wanted:
        return
    report.method.append(
        f"{count} Pods: each with objects of its own, posted one after the other in {posting:.2f} s (kubelet's: "
        f"0.35 s); read by a process of its own, a try each {ROUND_PAUSE * 1e3:g} ms"
    )
    taken = [(ready[pod.uid] - pod.posted) * 1e3 for pod in pods]
    name = f"Pod POST -> 3 volumes, {count} Pods at once"
    report.samples[name] = taken
    report.figures += [
        Figure(f"{name}, p50", percentile(taken, 50), "ms", 250.0, 491.0),
        Figure(f"{name}, max", max(taken), "ms", None, 791.0),
        Figure(f"first POST -> all {count * 3} volumes", (max(ready.values()) - start) * 1e3, "ms", None, 1150.0),
    ]


def _memory(node: Node, pods: int, report: Report) -> None:
    report.method.append(
        f"memory: PSS (/proc/PID/smaps_rollup) with {pods} Pods x 3 volumes, after all of the above; kubelet's is RSS"
    )
    found = usage.sample(usage.descendants(node.instance.keeper_pid))
    total = sum(process.pss for process in found)
    report.figures.append(Figure("memory of all processes (PSS)", total / MIB, "MiB", 110.0, 125e6 / MIB))
    report.notes += [
        f"{process.name}: PSS {process.pss / MIB:.1f} MiB, RSS {process.rss / MIB:.1f} MiB" for process in found
    ]


def _idle(node: Node, seconds: int, pods: int, report: Report) -> None:
    report.method.append(f"idle CPU: utime+stime of all processes over {seconds} s with {pods} Pods x 3 volumes")
    _say(f"idling for {seconds} s")
    pids = usage.descendants(node.instance.keeper_pid)
    names = {process.pid: process.name for process in usage.sample(pids)}
    used = usage.idle_cpu(pids, seconds)
    report.figures.append(Figure("idle CPU of all processes, of one core", sum(used.values()), "%", 1.0, 4.5))
    report.notes += [f"{names.get(pid, '?')}: {percent:.2f} % of a core when idle" for pid, percent in used.items()]


def _wait_for_all(pod: Pod) -> float:
    return max(wait_for(path, content.encode()) for path, content in pod.files.items())


def _say(words: str) -> None:
    print(f"bench: {words}", file=sys.stderr, flush=True)


def _progress(what: str, number: int, count: int) -> None:
    if number % 50 == 0:
        _say(f"{what} {number + 1} of {count}")


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return parts
