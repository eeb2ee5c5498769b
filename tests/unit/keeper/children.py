"""What the keeper starts here in place of server and agent: `children.py <behaviour> <argument> '<json>'`."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time


def server(config: dict[str, object]) -> None:
    ready, fuse = int(str(config["readyFd"])), int(str(config["fuseFd"]))
    os.write(ready, b"1")
    os.close(ready)
    os.read(fuse, 1)  # returns when the fake mount is removed


def agent(config: dict[str, object]) -> None:
    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.connect(str(config["keeperSocket"]))
        state = {"source": {"kind": "manifests", "synced": True, "errors": []}, "volumes": [{"name": "v"}]}
        keeper.sendall(json.dumps({"op": "state", "state": state}).encode() + b"\n")
        keeper.recv(1)  # returns when the keeper has gone


def main(behaviour: str, argument: str, config: dict[str, object]) -> None:
    match behaviour:
        case "server":
            server(config)
        case "agent":
            agent(config)
        case "stubborn":
            signal.signal(signal.SIGTERM, lambda *_: open(argument, "w").close())
            agent(config)
        case "silent":
            time.sleep(60)
        case "refuse":
            sys.exit(4)
        case "broken":
            sys.exit(1)
        case "environment":
            told = {key: os.environ.get(key) for key in ("PYTHONMALLOC", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
            told["service manager"] = os.environ.get("NOTIFY_SOCKET")
            told["fds"] = ",".join(sorted(os.listdir("/proc/self/fd"), key=int))
            with open(argument + ".new", "w", encoding="utf-8") as file:
                json.dump({**told, **config}, file)
            os.rename(argument + ".new", argument)
            agent(config)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
