"""Scripted demonstrations: an expert in its environment becomes episodes on disk."""
