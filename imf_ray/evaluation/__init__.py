"""Evaluates policies given on the command line, selects checkpoints and compares policies."""
