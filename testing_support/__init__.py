"""Helpers that both the tests and the benchmarks use."""
