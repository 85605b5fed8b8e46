"""Entry point of `python -m weft.benchmarks`."""

import sys

from .cli import main

sys.exit(main())
