"""Benchmarks: our paths beside what one would use without us, in one run: `python -m benchmarks`.

See docs/performance.md.
"""
