"""Distributed training: the loop, optimizer, checkpoints, validation and tracking."""
