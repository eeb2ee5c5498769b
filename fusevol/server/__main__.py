"""`python -m fusevol.server`."""

import sys

from fusevol.server.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
