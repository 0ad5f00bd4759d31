"""Short labels for long names, such as paths, URLs and names of trials."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len

ELLIPSIS = "…"
MIN_LABEL_WIDTH = 8
"""Smallest width of labels in columns of a terminal."""
HEAD_SHARES = (0.4, 0.25, 0.6, 0.1, 0.8, 0.0, 1.0)
"""Shares of a shortened text that show its start. The first share that keeps all texts different is
used; the rest shows the end, where paths usually differ."""


def short_labels(names: Iterable[str], width: int) -> dict[str, str]:
    """Return a label for each name: at most `width` columns wide, and different for each name.

    Names that are short enough stay as they are. Of the longer ones, parts that all of them share
    are left out first, then characters in the middle. An ellipsis stands for what is left out. The
    same set of names always gets the same labels.

    Args:
        width: width in columns of a terminal, of which East Asian characters take two.

    Raises:
        ValueError: the width is smaller than `MIN_LABEL_WIDTH`, or too small for so many names.
    """
    ordered = list(dict.fromkeys(names))
    if width < max(MIN_LABEL_WIDTH, len(str(len(ordered))) + 2):
        raise ValueError(f"{len(ordered)} labels need more than {width} columns.")
    labels = {name: name for name in ordered if cell_len(name) <= width}
    long = sorted(name for name in ordered if name not in labels)
    shortened = next(
        texts
        for texts in _shortened(long, width)
        if len(set(texts)) == len(texts) and not set(texts) & labels.keys()
    )
    labels |= dict(zip(long, shortened, strict=True))
    return {name: labels[name] for name in ordered}


def _shortened(names: Sequence[str], width: int) -> Iterator[list[str]]:
    """Generate ways to shorten all names to a width; the last ones are surely different."""
    paths = list(_without_shared_folders(names))
    yield from (texts for texts in paths if all(cell_len(text) <= width for text in texts))
    for texts in (paths[-1], _without_shared_characters(paths[-1])):
        yield from ([_cut(text, width, share) for text in texts] for share in HEAD_SHARES)
    for start in itertools.count(1):
        numbers = [f"{ELLIPSIS}{start + index}" for index in range(len(names))]
        yield [
            _head(name, width - len(number)) + number
            for name, number in zip(names, numbers, strict=True)
        ]


def _without_shared_folders(names: Sequence[str]) -> Iterator[list[str]]:
    """Generate the names without one, two, ... of the folders at the start that all share.

    Then also without shared folders and file names at the end.
    """
    yield list(names)
    paths = [name.split("/") for name in names]
    at_start = min(_num_shared(paths), min(map(len, paths), default=1) - 1)
    for count in range(1, at_start + 1):
        yield ["/".join([ELLIPSIS, *path[count:]]) for path in paths]
    ends = [path[at_start + 1 :][::-1] for path in paths]  # the first different part stays
    for count in range(1, (_num_shared(ends) if len(paths) > 1 else 0) + 1):
        start = [ELLIPSIS] if at_start else []
        yield ["/".join([*start, *path[at_start:-count], ELLIPSIS]) for path in paths]


def _without_shared_characters(texts: Sequence[str]) -> list[str]:
    """Return the texts with an ellipsis in place of their shared start and their shared end."""
    start = _num_shared(texts)
    end = _num_shared([text[start:][::-1] for text in texts])
    return [f"{ELLIPSIS}{text[start : len(text) - end]}{ELLIPSIS}" for text in texts]


def _num_shared(sequences: Sequence[Sequence[str]]) -> int:
    """Return the number of equal items at the start of all sequences."""
    items = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda item: len(set(item)) == 1, items))


def _cut(text: str, width: int, head_share: float) -> str:
    """Return a text with an ellipsis in place of its middle if it is wider than `width`."""
    if cell_len(text) <= width:
        return text
    head = _head(text, round(head_share * (width - 1)))
    return f"{head}{ELLIPSIS}{_tail(text, width - 1 - cell_len(head))}"


def _head(text: str, width: int) -> str:
    """Return the longest start of a text that is at most `width` columns wide."""
    if text.isascii():
        return text[:width]
    length = next(
        (index for index in range(len(text)) if cell_len(text[: index + 1]) > width), len(text)
    )
    return text[:length]


def _tail(text: str, width: int) -> str:
    """Return the longest end of a text that is at most `width` columns wide."""
    if text.isascii():
        return text[max(len(text) - width, 0) :]
    start = next(index for index in range(len(text) + 1) if cell_len(text[index:]) <= width)
    while start < len(text) and unicodedata.category(text[start])[0] in "MC":
        start += 1  # a mark or joiner would change the character before it
    return text[start:]
