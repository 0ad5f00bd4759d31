"""Scripted demonstrations: an expert acts in its env, and its episodes are written to disk."""
