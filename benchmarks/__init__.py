"""Benchmarks: our paths beside what one would use without us, in one run. `python -m benchmarks`; docs/performance.md."""
