"""Write the results of pruning: model, index sets, log, and the manifest that describes them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.bundle.manifest import FileRecord
from trtkp.bundle.pruned import PrunedLayer, PrunedManifest
from trtkp.bundle.records import source_record, totals_record
from trtkp.index.accounting import account
from trtkp.index.storage import save_index_sets
from trtkp.pipeline.records import paper_counts
from trtkp.pruning.run.folder import log_file
from trtkp.pruning.run.options import PruneOptions
from trtkp.pruning.run.outcome import Outcome
from trtkp.shapes import smallest_samples
from trtkp.version import __version__

if TYPE_CHECKING:
    from trtkp.graph.layers import LayerTable

__all__ = ["PrunedWriter"]


class PrunedWriter:
    """Writes an outcome to a directory. The manifest is made last, because it holds the hashes of the other files.

    Args:
        outcome: the results.
        options: the options of the pruning, for the manifest.
        output: directory that will hold the results.
        staging: temporary directory to write to; it becomes ``output`` once it is complete.
    """

    def __init__(self, outcome: Outcome, options: PruneOptions, output: Path, staging: Path) -> None:
        self._outcome, self._subject = outcome, outcome.subject
        self._options, self._output, self._staging = options, output, staging
        self._model = staging / ("model.onnx" if self._subject.source.format == "onnx" else "model.pt2")

    def write(self) -> None:
        """Write model, index sets and log."""
        if self._subject.source.format == "onnx":
            self._write_onnx()
        else:
            self._write_program()
        save_index_sets(self._staging / "index_sets.safetensors", self._outcome.index_sets)
        log = log_file(self._output)
        if log.exists():
            (self._staging / log.name).write_bytes(log.read_bytes())

    def _write_onnx(self) -> None:
        from trtkp.graph.passes.pack import apply_masks
        from trtkp.graph.save import save_graph

        apply_masks(self._subject.graph, self._outcome.all_masks)
        save_graph(self._subject.graph, self._model)

    def _write_program(self) -> None:
        from trtkp.pruning.masked import apply_masks

        backend, module = self._subject.backend, self._outcome.module
        if self._outcome.deployed is not None:
            assert module is not None
            backend.save_other(self._model, module)
            return
        if module is None:
            module = self._subject.source.module()
            apply_masks(module, self._outcome.all_masks)
        backend.save(self._model, module.state_dict())

    def manifest(self, files: dict[str, FileRecord]) -> PrunedManifest:
        """The manifest; ``files`` are the records of the files that `write` wrote."""
        outcome, subject, method, options = self._outcome, self._subject, self._outcome.method, self._options
        index_sets, table = outcome.index_sets, subject.table
        matrices = {name: int(mask.sum()) for name, mask in outcome.matrices.items()}
        accounting = account(table.layers, table.params, table.macs, index_sets, table.matrices_kept(matrices))
        paper = method.paper_bytes_by_layer(index_sets)
        counts = paper_counts(method, subject.source, subject.profile, accounting)
        totals = totals_record(accounting, paper, counts)
        retained = {cost.name: cost.params.retained for cost in accounting.layers}
        if outcome.deployed is not None:
            made = self._table()
            totals = totals.model_copy(update={"retained_params": made.params, "retained_macs": made.macs})
            retained = outcome.deployed.params
        return PrunedManifest(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            trtkp=__version__,
            source=source_record(subject.source, subject.path, self._output, options.arch),
            method=method.name,
            settings=method.settings(),
            include=list(options.include),
            skip=list(options.skip),
            model=self._model.name,
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
            matrices=matrices,
            left_dense=outcome.left_dense,
            totals=totals,
            data=subject.split.digest() if subject.split is not None else None,
            training=options.training.as_dict() if subject.split is not None and options.training.epochs else None,
            report=outcome.report,
            accuracy=outcome.accuracy or None,
            seconds=outcome.seconds,
            warnings=outcome.warnings,
            files=files,
        )

    def _table(self) -> LayerTable:
        """The layer table of the model that was written."""
        from trtkp.graph.layers import conv_layers
        from trtkp.model import load_model

        written = load_model(self._model)
        return conv_layers(written.graph(), smallest_samples(written.inputs, self._subject.profile))
