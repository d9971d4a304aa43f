"""Products of the demo and the benchmarks: data, small plans, folders, pictures."""
