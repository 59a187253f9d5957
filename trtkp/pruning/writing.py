"""Writing what pruning came to: model, index sets, log, and the manifest that tells of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import trtkp
from trtkp.bundle.manifest import FileRecord
from trtkp.bundle.pruned import PrunedLayer, PrunedManifest
from trtkp.prune.accounting import account
from trtkp.prune.regulariser import Converting, Deployed
from trtkp.prune.storage import save_index_sets
from trtkp.pruning.options import PruneOptions
from trtkp.pruning.outcome import Outcome
from trtkp.pruning.stages import log_file
from trtkp.pruning.subject import torch_backend
from trtkp.records import paper_counts, source_record, totals_record
from trtkp.shapes import smallest_samples

if TYPE_CHECKING:
    from trtkp.graph.layers import LayerTable

__all__ = ["Writing"]


class Writing:
    """Writes an outcome; the manifest comes last, when the other files have their hashes."""

    def __init__(self, outcome: Outcome, options: PruneOptions, output: Path) -> None:
        self._outcome, self._options, self._output = outcome, options, output
        self._subject, self._method = outcome.subject, outcome.method
        self._made: tuple[Deployed, LayerTable] | None = None

    @property
    def model_file(self) -> str:
        """The model stays in the form that it came in."""
        return "model.onnx" if self._subject.source.format == "onnx" else "model.pt2"

    def write(self, staging: Path) -> None:
        """Model, index sets and log."""
        model = staging / self.model_file
        if isinstance(self._method, Converting):
            self._write_converted(model, self._method)
        elif self._subject.source.format == "onnx":
            self._write_onnx(model)
        else:
            self._write_weights(model)
        save_index_sets(staging / "index_sets.safetensors", self._outcome.index_sets)
        log = log_file(self._output)
        if log.exists():
            (staging / log.name).write_bytes(log.read_bytes())

    def _write_onnx(self, file: Path) -> None:
        import onnx_ir as ir

        from trtkp.graph.rewrite import apply_masks

        apply_masks(self._subject.graph, self._outcome.all_masks)
        ir.save(self._subject.graph, file)

    def _write_weights(self, file: Path) -> None:
        from trtkp.prune.masked import apply_masks

        source, module = self._subject.source, self._outcome.module
        if module is None:
            module = source.module()
            apply_masks(module, self._outcome.all_masks)
        torch_backend(source, self._method.name).save(file, module.state_dict())

    def _write_converted(self, file: Path, method: Converting) -> None:
        """The net that the method made, as it is deployed."""
        from trtkp.graph.layers import conv_layers
        from trtkp.model import load_model
        from trtkp.prune.train.modes import set_training

        outcome, subject = self._outcome, self._subject
        assert outcome.module is not None
        set_training(outcome.module.cpu(), False)
        deployed = method.deployed(outcome.module, subject.layers, subject.table.macs)
        outcome.masks = deployed.masks
        outcome.report |= deployed.report
        torch_backend(subject.source, method.name).save_other(file, outcome.module)
        written = load_model(file)
        self._made = deployed, conv_layers(written.graph(), smallest_samples(written.inputs, subject.profile))

    def manifest(self, files: dict[str, FileRecord]) -> PrunedManifest:
        """What was done."""
        outcome, subject, method, options = self._outcome, self._subject, self._method, self._options
        index_sets = outcome.index_sets
        accounting = account(subject.table.layers, subject.table.params, subject.table.macs, index_sets)
        counter = getattr(method, "paper_index_bytes", None)
        paper = {name: counter(index) for name, index in index_sets.items()} if counter is not None else {}
        counts = paper_counts(method.name, subject.source, subject.profile, accounting)
        totals = totals_record(accounting, paper, counts)
        retained = {cost.name: cost.params.retained for cost in accounting.layers}
        if self._made is not None:
            deployed, table = self._made
            totals = totals.model_copy(update={"retained_params": table.params, "retained_macs": table.macs})
            retained = deployed.params
        return PrunedManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            trtkp=trtkp.__version__,
            source=source_record(subject.source, subject.path, self._output, options.arch),
            method=method.name,
            settings=method.settings(),
            include=list(options.include),
            skip=list(options.skip),
            model=self.model_file,
            layers=[
                PrunedLayer(
                    name=name,
                    kind=index.kind.value,
                    filter_groups=index.filter_groups,
                    density=index.density,
                    retained_params=retained[name],
                    index_bytes=index.nbytes,
                    paper_index_bytes=paper.get(name),
                )
                for name, index in index_sets.items()
            ],
            left_dense=outcome.left_dense,
            totals=totals,
            data=subject.parts.digest() if subject.parts is not None else None,
            training=options.training.as_dict() if subject.parts is not None and options.training.epochs else None,
            report=outcome.report,
            accuracy=outcome.accuracy or None,
            seconds=outcome.seconds,
            warnings=outcome.warnings,
            files=files,
        )
