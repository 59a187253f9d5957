"""What a build has once its graphs are planned: the graphs, and a draft of the manifest.

A build from a model gets there by pruning and planning (`draft_of_model`). A build from a bundle finds all of it in the
bundle. From here on both take the same steps (`trtkp.pipeline.finish`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtkp.bundle.manifest import Manifest
from trtkp.bundle.records import source_record, tensor_record, totals_record
from trtkp.index.accounting import account
from trtkp.pipeline.job import Job
from trtkp.pipeline.planning import Planned
from trtkp.pipeline.prepare import Loaded, Pruned
from trtkp.pipeline.records import layer_records, paper_counts
from trtkp.pruning.method import Method
from trtkp.shapes import Profile
from trtkp.version import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

    from trtkp.bundle.calibration import Calibration
    from trtkp.data.labelled import LabelledData
    from trtkp.data.samples import Samples
    from trtkp.graph.layers import LayerTable

__all__ = ["Draft", "Graphs", "draft_of_model"]


@dataclass(frozen=True)
class Graphs:
    """The two graphs of a bundle before they are files.

    They are not in `Draft`, so that a build can free their memory before the engine is compiled.

    Attributes:
        packed: ``model.onnx``.
        engine: ``engine.onnx``.
    """

    packed: ir.Model
    engine: ir.Model


@dataclass(frozen=True)
class Draft:
    """A planned net as it is known before it is quantised, checked and built.

    Attributes:
        manifest: all that is known so far. The rest of the build adds warnings and seconds, and fills in the date,
            files, engine, quantisation and accuracy.
        profile: smallest, usual and largest shape of every input.
        samples: real inputs to calibrate with and to measure accuracy on; None without data.
        calibration: ranges and precisions to use as they are; None to measure them.
        lowerings: lowering of every packed layer, by name.
        plugins: library of the plugins that ``engine.onnx`` may use; None where there is none.
        reference: graph whose accuracy is reported as that before: the unpruned net, or the bundle's ``engine.onnx``.
    """

    manifest: Manifest
    profile: Profile
    samples: Samples | None
    calibration: Calibration | None
    lowerings: Mapping[str, str]
    plugins: Path | None
    reference: ir.Model | Path

    @property
    def labelled(self) -> LabelledData | None:
        """The samples, if they have labels."""
        return self.samples.labelled if self.samples is not None else None


def draft_of_model(
    job: Job,
    method: Method,
    loaded: Loaded,
    table: LayerTable,
    pruned: Pruned,
    ops: Mapping[str, str],
    planned: Planned,
) -> Draft:
    """The draft after a model was pruned and planned.

    Args:
        job: the build.
        method: the one that pruned it.
        loaded: the model.
        table: the net's convolutions.
        pruned: what the method kept.
        ops: name of every packed node to its operator.
        planned: the plan.
    """
    options, source = job.options, loaded.source
    matrices = table.matrices_kept(method.stored_matrices())
    accounting = account(table.layers, table.params, table.macs, pruned.index_sets, matrices)
    paper = method.paper_bytes_by_layer(pruned.index_sets)
    halved = options.precision == "fp16" and not options.keep_io
    manifest = Manifest(
        created="",
        trtkp=__version__,
        source=source_record(source, job.path, job.output, options.arch),
        method=method.name,
        settings=method.settings(),
        include=list(options.include),
        skip=list(options.skip),
        backend=job.backend.name,
        precision=options.precision,  # type: ignore[arg-type]  # checked at the start
        keep_io=options.keep_io,
        inputs=[tensor_record(spec, halved=halved) for spec in source.inputs],
        outputs=[tensor_record(spec, halved=halved) for spec in source.outputs],
        profile={
            name: {"min": list(shapes.min), "opt": list(shapes.opt), "max": list(shapes.max)}
            for name, shapes in loaded.profile.items()
        },
        layers=layer_records(
            table,
            accounting,
            pruned.index_sets,
            planned.plan,
            ops=ops,
            paper=paper,
            left_dense=pruned.left_dense,
        ),
        left_out=table.left_out,
        totals=totals_record(accounting, paper, paper_counts(method, source, loaded.profile, accounting)),
        plan=planned.record,
        libraries={},
        seconds={},
        warnings=[*source.warnings, *pruned.warnings, *planned.warnings],
        files={},
    )
    return Draft(
        manifest=manifest,
        profile=loaded.profile,
        samples=loaded.samples,
        calibration=loaded.calibration,
        lowerings={layer.name: layer.choice for layer in planned.plan.layers},
        plugins=planned.plugins,
        reference=source.graph(),
    )
