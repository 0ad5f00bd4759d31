"""Figures whose texts are names of the user's files."""

from __future__ import annotations

import io
import warnings

import pytest
from matplotlib.figure import Figure

from imf_ray.figures import plain_names, text_color


def test_names_with_dollar_signs_and_unknown_characters_are_drawn() -> None:
    with warnings.catch_warnings(), plain_names():
        warnings.simplefilter("error", RuntimeWarning)
        figure = Figure(layout="constrained")
        figure.add_subplot().set_title("cost_$100_$[x_ 研究")
        figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ((1, 1, 1), "black"),
        ((0, 0, 0), "white"),
        ((0.45, 0.45, 0.45), "white"),
        ((1, 1, 0), "black"),
    ],
)
def test_text_color_has_the_higher_contrast(fill: tuple[float, ...], expected: str) -> None:
    assert text_color(fill) == expected
