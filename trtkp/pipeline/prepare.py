"""The steps from a model file to a packed graph: load → survey → prune → rewrite.

Each step takes the results of earlier ones. `trtkp.budget` runs the same steps: loading and the survey once, the others
for every allocation that it tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

from trtkp.errors import JobError
from trtkp.index.index_set import IndexSet
from trtkp.model.layers import named_graph, read_layers
from trtkp.pipeline.job import Job
from trtkp.pipeline.quantised import read_samples
from trtkp.pruning.method import Method
from trtkp.pruning.one_shot import prune_one_shot
from trtkp.shapes import Profile, profile_from_options

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    from trtkp.bundle.calibration import Calibration
    from trtkp.data.labelled import LabelledData
    from trtkp.data.samples import Samples
    from trtkp.graph.layers import LayerTable
    from trtkp.model import SourceModel

__all__ = ["Loaded", "Pruned", "Rewritten", "Surveyed", "load", "prune", "rewrite", "survey"]


@dataclass(frozen=True)
class Loaded:
    """What a build read from files.

    Attributes:
        source: the model.
        profile: smallest, usual and largest shape of every input.
        samples: the samples of the given data; None without data.
        calibration: the calibration that was given; None without one.
    """

    source: SourceModel
    profile: Profile
    samples: Samples | None
    calibration: Calibration | None

    def graph(self) -> ir.Model:
        """A copy of the source graph, every node with a name of its own."""
        return named_graph(self.source)


@dataclass(frozen=True)
class Surveyed:
    """The layers of a model.

    Attributes:
        table: its convolutions.
        weights: of each, by parameter name: [F, C, R, S].
        folded: the graph is an ONNX file's and has no batch normalisation: the exporter seems to have folded it.
    """

    table: LayerTable
    weights: Mapping[str, npt.NDArray[np.floating]]
    folded: bool


@dataclass(frozen=True)
class Pruned:
    """What a method keeps.

    Attributes:
        index_sets: by parameter name.
        left_dense: parameter name to the reason why it was not pruned.
        warnings: one line each.
    """

    index_sets: dict[str, IndexSet]
    left_dense: dict[str, str]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Rewritten:
    """The pruned net as two graphs that compute the same.

    Attributes:
        dense: pruned weights at zero, batch normalisation folded, at its precision.
        packed: the same net with packed operators: ``model.onnx``.
        ops: name of every packed node to its operator.
    """

    dense: ir.Model
    packed: ir.Model
    ops: dict[str, str]


def load(job: Job, data: LabelledData | str | PathLike[str] | None) -> Loaded:
    """Read the model, and the data and calibration if any was given.

    Raises:
        InputError: one of them cannot be read, or does not fit the others or the options.
    """
    from trtkp.bundle.calibration import load_calibration
    from trtkp.data.labelled import LabelledData, check_labels
    from trtkp.model import load_model

    options = job.options
    source = load_model(
        job.path,
        arch=options.arch,
        input_shape=list(options.input_shape) or None,
        trust_pickle=options.trust_pickle,
    )
    profile = profile_from_options(
        source.inputs, options.min, options.opt, options.max, input_shape=options.input_shape
    )
    given = load_calibration(options.calibration_file) if options.calibration_file is not None else None
    samples = read_samples(data, profile, options.calibration) if data is not None else None
    if samples is not None:
        check_labels(samples.labels, source.outputs[0].shape, None if isinstance(data, LabelledData) else data)
    return Loaded(source, profile, samples, given)


def survey(job: Job, loaded: Loaded) -> Surveyed:
    """Read the layers off the source graph.

    Raises:
        InputError: weights of a type that no engine has, or a graph that does not run.
    """
    graph = loaded.graph()
    table, weights = read_layers(graph, loaded.source, loaded.profile, job.options.floating)
    kinds = {node.op_type for node in graph.graph}
    return Surveyed(table, weights, loaded.source.format == "onnx" and "BatchNormalization" not in kinds)


def prune(job: Job, surveyed: Surveyed, method: Method) -> Pruned:
    """Let the method choose what every layer keeps.

    Raises:
        InputError: a pattern that fits no layer, or weights that the method cannot prune.
    """
    layers = surveyed.table.layers
    pruning = prune_one_shot(method, layers, surveyed.weights, job.options.include, job.options.skip)
    index_sets = pruning.index_sets({layer.name: layer.groups for layer in layers})
    warnings = method.notes(pruned=bool(index_sets), folded=surveyed.folded)
    return Pruned(index_sets, pruning.left_dense, tuple(warnings))


def rewrite(job: Job, loaded: Loaded, table: LayerTable, pruned: Pruned) -> Rewritten:
    """Set pruned weights to zero, fold batch normalisation, convert to the requested precision, and pack.

    Raises:
        InputError: a weight beyond the range of float16.
        JobError: an index set has no packed operator.
    """
    from trtkp.graph.passes.batch_norm import fold_batch_norm
    from trtkp.graph.passes.dynamic import fold_dynamic, fuse_dynamic
    from trtkp.graph.passes.pack import apply_masks, pack_convolutions
    from trtkp.graph.passes.precision import to_float16

    dense = loaded.graph()
    apply_masks(dense, {name: index.mask() for name, index in pruned.index_sets.items()})
    fold_batch_norm(dense)
    fold_dynamic(dense)
    if job.options.precision == "fp16":
        dense = to_float16(dense, keep_io=job.options.keep_io)
    packed = dense.clone()
    fuse_dynamic(packed)
    nodes = pack_convolutions(packed, pruned.index_sets, {layer.node: layer.input_size for layer in table.layers})
    ops = {str(node.name): node.op_type for node in nodes}
    unpacked = {layer.node for layer in table.layers if layer.name in pruned.index_sets} - set(ops)
    if unpacked:  # the bundle format promises a packed node for every index set
        raise JobError(f"no packed operator was made for {', '.join(sorted(unpacked))}", file=job.path)
    return Rewritten(dense, packed, ops)
