"""Distributed training: the worker's loop, optimizer, checkpoints, validation and tracking."""
