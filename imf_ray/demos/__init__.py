"""Scripted demonstrations: runs a task's expert in its env and writes the episodes to disk."""
