"""Queries about processes of the operating system."""

from __future__ import annotations

import psutil


def is_alive(pid: int) -> bool:
    """True if the process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
