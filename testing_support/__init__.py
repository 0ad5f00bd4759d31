"""Helpers of both the tests and the benchmarks."""
