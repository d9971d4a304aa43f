"""The blocks of `benchmarks/gpu.py`: each is a function of a `Site` and its `Findings`."""
