"""The benchmark suite: one script per question, run as `python -m benchmarks`."""
