"""`python -m fusevol.keeper '<json>'`: started by `fusevol mount`, with the configuration of `config.Config`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from fusevol.keeper.config import Config, Programs
from fusevol.keeper.keeper import Keeper
from fusevol.keeper.log import Log
from fusevol.keeper.mounting import FuseMount
from fusevol.model.errors import UserError

# SIGHUP: a closed terminal is no reason to take the volumes away from containers
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def signal_pipe() -> Iterator[int]:
    """A descriptor from which the numbers of the SIGNALS that arrive are read."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # handlers and not SIG_IGN, which the children would inherit
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def main(arguments: list[str]) -> int:
    config = Config.from_json(arguments[0])
    if config.lock_fd is not None:
        os.set_inheritable(config.lock_fd, False)  # the agent gets it by name, nobody else
    log = Log(config.log_format, config.verbosity)
    with signal_pipe() as signals:
        try:
            return Keeper(config, Programs(), FuseMount(config.mountpoint, log), signals, log).run()
        except UserError as error:
            print(f"fusevol: {error}", file=sys.stderr)
            return error.exit_code
        except OSError as error:
            print(f"fusevol: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
