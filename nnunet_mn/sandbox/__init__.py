"""What the demo and the benchmarks make: data, small plans, folders, pictures."""
