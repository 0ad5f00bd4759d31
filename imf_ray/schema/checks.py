"""Refusals that the sections share."""

from __future__ import annotations

from collections.abc import Sequence

from imf_ray.errors import UserError


def check_min(section: str, values: object, **bounds: float) -> None:
    """Refuse values of a section below their bounds."""
    for key, bound in bounds.items():
        if getattr(values, key) < bound:
            raise UserError(f"{section}.{key}={getattr(values, key)} must be at least {bound:g}.")


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown: choose one of {', '.join(known)}.")
