"""Evaluates policies by name, selects checkpoints and compares policies in pairs."""
