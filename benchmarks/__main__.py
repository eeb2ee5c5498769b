"""`./scripts/bench`: lists the benches, or runs one."""

from __future__ import annotations

import argparse
import sys

from benchmarks import histories, latency, token

BENCHES = {"latency": latency, "histories": histories, "token": token}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./scripts/bench",
        description="Benches of fusevol. Each prints the machine and the method next to its numbers.",
        epilog="`./scripts/bench BENCH --help` tells a bench's options.",
    )
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", title="benches")
    for name, bench in BENCHES.items():
        bench.add_arguments(benches.add_parser(name, help=bench.SUMMARY, description=bench.__doc__))
    options = parser.parse_args()
    if options.bench is None:
        parser.print_help()
        return 0
    code: int = BENCHES[options.bench].run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
