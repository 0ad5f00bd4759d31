"""Sweeps: search spaces, trials, schedulers that stop trials early, and ranked results."""
