"""Judging policies by name: who is judged, the choice of a checkpoint, paired comparisons."""
