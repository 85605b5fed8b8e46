"""Speed and memory of the networks next to plain compositions of the same layers: `python -m weft.benchmarks`."""
