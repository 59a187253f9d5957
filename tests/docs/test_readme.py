"""The links of README.md, which is not part of the site and so is not checked by its build."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_link_leads_to_a_file() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(targets) > 20
    assert [target for target in targets if "://" not in target and not (ROOT / target).is_file()] == []
