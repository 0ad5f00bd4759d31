"""Reads the reports that commands write."""

from __future__ import annotations

import re
from pathlib import Path


def read_report(folder: Path) -> tuple[str, set[str]]:
    """Return the text of a folder's report, and the ids of its sections."""
    text = (folder / "report.html").read_text()
    assert text.count("<section") == text.count("</section>") > 1 and text.rstrip().endswith(
        "</html>"
    )
    return text, set(re.findall(r'<section id="([\w-]+)"', text))
