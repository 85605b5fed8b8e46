"""Try Weft, test it, work on it, with nothing but Python: `python dev.py demo`, `... test`, `... serve`."""

import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit("error: Weft needs Python 3.10 to 3.13, this is " + sys.version.split()[0] + ": run dev.py by another one")

from tools.cli import main  # noqa: E402 (an older Python cannot read it)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
