"""What a search may replace."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtkp.budget.files import ALLOCATION, RECORD, check_output
from trtkp.errors import InputError


def test_an_older_search_gives_way_but_no_file_beside_it(tmp_path: Path) -> None:
    for name in (ALLOCATION, RECORD):
        (tmp_path / name).write_text("{}")
    check_output(tmp_path)
    (tmp_path / "trained.pt").write_text("of the user")
    with pytest.raises(InputError, match="is not the result of a search"):
        check_output(tmp_path)
