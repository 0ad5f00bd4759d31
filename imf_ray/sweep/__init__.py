"""Sweeps: a search space, its trials, the schedulers that stop them, and the ranked results."""
