"""`python -m fusevol` is the command `fusevol`."""

from __future__ import annotations

import sys

from fusevol.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
