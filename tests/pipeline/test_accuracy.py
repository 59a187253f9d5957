"""Accuracy on given data, before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trtkp


def test_accuracy_before_and_after(classifier: Path, tmp_path: Path) -> None:
    from trtkp.data.labelled import LabelledData
    from trtkp.model import load_model

    images = np.random.default_rng(1).standard_normal((70, 3, 8, 8)).astype(np.float32)
    labels = load_model(classifier).run({"image": images})["y"].argmax(axis=1)
    labels[:7] = (labels[:7] + 1) % 5
    seen: list[str] = []
    bundle = trtkp.build(
        classifier, tmp_path / "b", n=1, data=LabelledData(images, labels), progress=lambda *s: seen.append(s[0])
    )
    assert bundle.manifest.accuracy is not None
    assert bundle.manifest.accuracy["dense"] == 0.9
    with bundle:
        found = bundle.run({"image": images[:64]})["y"].argmax(axis=1)
        found = np.append(found, bundle.run({"image": images[64:]})["y"].argmax(axis=1))
    assert bundle.manifest.accuracy["pruned"] == pytest.approx((found == labels).mean())
    assert bundle.manifest.accuracy["pruned"] != 0.9
    assert not [path.name for path in bundle.path.iterdir() if path.name.startswith(".")]
    assert seen[0] == "Load"
    assert {"Prune", "Rewrite", "Plan", "Check", "Build", "Accuracy"} <= set(seen)
