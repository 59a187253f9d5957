"""The outer search: within the budget, no worse than the plain sum, and going on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from trtkp.budget.choices import DENSE, Choice, Level, total
from trtkp.budget.study import search


def net(layers: int = 9) -> dict[str, list[Choice]]:
    rng = np.random.default_rng(0)
    found = {}
    for layer in range(layers):
        ms, spoils = rng.uniform(1, 3), rng.uniform(0.5, 1)
        levels = [Level(ratio, 64) for ratio in (0.25, 0.5, 0.75)]
        found[f"conv{layer}"] = [
            Choice(DENSE, ms, 100, 0.0),
            *(Choice(level, ms * (1 - 0.8 * level.ratio), int(100 * (1 - level.ratio)), spoils * level.ratio**2)
              for level in levels),
        ]  # fmt: skip
    return found


def early_layers_matter(chosen: Mapping[str, Choice]) -> float:
    """A net whose first third suffers ten times what its layers alone tell."""
    return sum(choice.error * (10 if i < len(chosen) / 3 else 1) for i, choice in enumerate(chosen.values()))


@pytest.mark.parametrize("by", ["latency_ms", "macs"])
def test_it_beats_the_plain_sum_within_the_budget(by: str) -> None:
    choices = net()
    budget = 0.6 * sum(getattr(layer[0], by) for layer in choices.values())
    first = search(choices, budget, by=by, loss=early_layers_matter, trials=1)
    found = search(choices, budget, by=by, loss=early_layers_matter, trials=30)
    assert first is not None
    assert found is not None
    assert total(found.chosen, by=by) <= budget * (1 + 1e-6)
    assert found.loss < 0.9 * first.loss
    assert found.loss == pytest.approx(early_layers_matter(found.chosen))
    assert list(found.chosen) == list(choices)


def test_a_budget_below_the_cheapest() -> None:
    assert search(net(), 1.0, by="latency_ms", loss=early_layers_matter, trials=3) is None


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    choices, asked = net(), []

    def loss(chosen: Mapping[str, Choice]) -> float:
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return early_layers_matter(chosen)

    budget = 0.6 * total({name: layer[0] for name, layer in choices.items()}, by="latency_ms")
    common = {"by": "latency_ms", "trials": 12, "storage": tmp_path / "journal.log"}
    with pytest.raises(KeyboardInterrupt):
        search(choices, budget, loss=loss, **common)  # type: ignore[arg-type]
    done = []
    found = search(choices, budget, loss=loss, progress=lambda trial, of, best: done.append((trial, of)), **common)  # type: ignore[arg-type]
    assert found is not None
    assert found.trials == 12
    assert done[0][0] >= 4
    assert done[-1] == (12, 12)
    again = search(choices, budget, loss=loss, **common)  # type: ignore[arg-type]
    assert again is not None
    assert again.loss == found.loss
    assert again.chosen == found.chosen


def test_a_net_without_layers() -> None:
    assert search({}, 1.0, by="macs", loss=early_layers_matter, trials=3) is None
