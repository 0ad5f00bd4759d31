"""Short labels of long names: different, of bounded width, and the same every time."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from imf_ray.labels import short_labels

NAMES = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(["runs", "demo", "größe", "実験", "a" * 30, ""]), max_size=6).map(
            "/".join
        ),
    ),
    max_size=30,
)


@given(names=NAMES, width=st.integers(8, 40))
@example(names=[f"{'x' * 50}{i:03d}{'y' * 50}" for i in range(300)], width=8)
@example(names=["…2", *(f"{'x' * 20}{i}{'y' * 20}" for i in range(3))], width=8)
@example(names=["👩\u200d🚀" * 30, "👩\u200d🚀" * 29, "☁\ufe0f" * 20], width=9)
def test_labels_are_different_and_narrow_in_any_order(names: list[str], width: int) -> None:
    labels = short_labels(names, width)
    assert list(labels) == list(dict.fromkeys(names))
    assert len(set(labels.values())) == len(labels)
    assert all(cell_len(label) <= width for label in labels.values())
    assert all(label == name for name, label in labels.items() if cell_len(name) <= width)
    assert short_labels(names[::-1], width) == labels


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (["short", "expert"], 8, ["short", "expert"]),
        (
            ["/home/me/demo/checkpoint_00001000", "/home/me/demo/checkpoint_00002000"],
            27,
            ["…/demo/checkpoint_00001000", "…/demo/checkpoint_00002000"],
        ),
        (
            ["/data/a/sweep/trials/00001-x/best", "/data/b/sweep/trials/00001-x/best"],
            28,
            ["…/a/sweep/trials/00001-x/…", "…/b/sweep/trials/00001-x/…"],
        ),
        (
            ["expert", "s3://bucket/runs/transfer/checkpoint_00001000"],
            28,
            ["expert", "…/checkpoint_00001000"],
        ),
        (
            ["00000-n_emb_64-n_layer_2-lr_0.0001", "00001-n_emb_64-n_layer_2-lr_0.0003"],
            20,
            ["00000-n_…2-lr_0.0001", "00001-n_…2-lr_0.0003"],
        ),
        (
            [f"{'same' * 9}-{i}-{'rest' * 9}" for i in (1, 2)],
            12,
            ["…1…", "…2…"],
        ),
    ],
)
def test_what_differs_stays(names: list[str], width: int, expected: list[str]) -> None:
    assert list(short_labels(names, width).values()) == expected


def test_a_width_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="2 labels need more than 7 columns"):
        short_labels(["a", "b"], 7)
