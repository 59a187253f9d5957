"""The backend for exported programs: specs, ONNX graph, eager reference, and a module for training."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkp.errors import InputError, raise_if_out_of_memory
from trtkp.model.dims import SymbolNames
from trtkp.model.source import LazyWeights
from trtkp.shapes import Dim, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch.export import ExportedProgram

__all__ = ["TorchBackend"]

_EVAL = "call model.eval() before torch.export.export"
_BATCH_ALONE = "export the model with a dynamic batch alone"


class _RememberedErrors(io.FileIO):
    """A file whose writes never raise: PyTorch's writer ends the process if one does. ``error`` is the first."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            rest = memoryview(data).cast("B")
            while len(rest) and self.error is None:  # one call may write less than asked
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes


def _save(program: ExportedProgram, path: Path) -> None:
    """Write a program as ``torch.export.save`` does.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    with _RememberedErrors(path, "w") as file:
        torch.export.save(program, file)
    if file.error is not None:
        raise file.error


class TorchBackend:
    """A model held as an exported program.

    Args:
        program: the program, on the CPU and in evaluation mode.
        path: its path, for error messages.
        original: the module that it was exported from, if there is one. `module` then returns a copy of it.

    Raises:
        InputError: the program was exported in training mode, or has inputs or outputs that are not tensors.
    """

    reference_name = "PyTorch"

    def __init__(self, program: ExportedProgram, path: Path, original: torch.nn.Module | None = None) -> None:
        self.program = program
        self.path = path
        self._original = original
        _check_evaluation(program, path)
        self._symbols = SymbolNames(program)
        self.inputs, self.outputs = self._specs()

    def graph(self) -> ir.Model:
        """See `SourceModel.graph`."""
        from trtkp.model.torch_export import export_graph

        return export_graph(
            self.program,
            self.path,
            names=self._symbols.names,
            outputs=[spec.name for spec in self.outputs],
            parameters=self.parameters().keys(),
        )

    def parameters(self) -> LazyWeights:
        """See `SourceModel.parameters`."""
        used = {node.name for node in self.program.graph_module.graph.nodes if node.op == "placeholder" and node.users}
        getters: dict[str, Callable[[], np.ndarray]] = {}
        for spec in self.program.graph_signature.input_specs:
            tensor = self._tensor(spec)
            if tensor is not None and tensor.is_floating_point() and spec.arg.name in used:
                getters[str(spec.target)] = partial(_as_array, tensor)
        return LazyWeights(getters)

    def run(self, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `SourceModel.run`."""
        import torch
        from torch.export.graph_signature import InputKind, OutputKind

        signature = self.program.graph_signature
        arguments: list[Any] = []
        for spec in signature.input_specs:
            tensor = self._tensor(spec)
            if tensor is not None and spec.target in weights:
                arguments.append(torch.tensor(np.asarray(weights[str(spec.target)])).to(tensor.dtype))
            elif tensor is not None:
                # The program may write its buffers, but the source must not change.
                arguments.append(tensor.detach().clone() if spec.kind is InputKind.BUFFER else tensor.detach())
            elif hasattr(spec.arg, "value"):
                arguments.append(spec.arg.value)
            else:
                wanted = next(s.dtype for s in self.inputs if s.name == spec.arg.name)
                arguments.append(torch.tensor(feeds[spec.arg.name]).to(getattr(torch, wanted)))
        try:
            with torch.no_grad():
                results = self.program.graph_module(*arguments)
        except Exception as error:
            raise_if_out_of_memory(error)
            raise InputError(f"PyTorch cannot run the model ({_first_line(error)})", file=self.path) from None
        user = [
            result
            for spec, result in zip(signature.output_specs, results, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        ]
        return {spec.name: _as_array(result) for spec, result in zip(self.outputs, user, strict=True)}

    def release(self) -> None:
        """See `SourceModel.release`. Nothing is mapped here."""

    def module(self) -> torch.nn.Module:
        """See `SourceModel.module`."""
        return copy.deepcopy(self._original) if self._original is not None else self.graph_module()

    def graph_module(self) -> torch.fx.GraphModule:
        """The program as a module whose operators are calls in a graph, whatever it was exported from."""
        # Guards would be compiled from strings, and say no more than the specs do.
        with warnings.catch_warnings():
            # Copying warns about deprecated classes inside PyTorch.
            warnings.simplefilter("ignore")
            module: torch.fx.GraphModule = copy.deepcopy(self.program.module(check_guards=False))
        return module

    def save(self, path: Path, state: Mapping[str, torch.Tensor]) -> None:
        """Save the program with other weights and buffers, as ``torch.export.save`` does. The program keeps them.

        Args:
            path: the new file.
            state: state dict of a trained `module`.
        """
        import torch

        with torch.no_grad():
            for name, tensor in self.program.state_dict.items():
                if name in state:
                    tensor.copy_(state[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _save(self.program, path)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Zeros of the smallest sizes that the model takes, but at least 2: torch.export treats 1 as a constant."""
        import torch

        return tuple(
            torch.zeros([max(2, d.minimum) if isinstance(d, Dim) else d for d in spec.shape],
                        dtype=getattr(torch, spec.dtype))
            for spec in self.inputs
        )  # fmt: skip

    def save_other(self, path: Path, module: torch.nn.Module) -> None:
        """Export another module with the same inputs, and save it.

        Args:
            path: the new file.
            module: the module, on the CPU and in evaluation mode.

        Raises:
            InputError: the module cannot be exported.
        """
        import torch

        shapes = self.dynamic_shapes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                program = torch.export.export(module, self.example(), dynamic_shapes=shapes, strict=False)
            except Exception as error:
                raise_if_out_of_memory(error)
                raise InputError(f"PyTorch cannot export the trained net ({_first_line(error)})", file=self.path,
                                 remedy=_BATCH_ALONE) from None  # fmt: skip
            _save(program, path)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """The dynamic sizes of every input, to export another module with the same inputs.

        Raises:
            InputError: a size is an expression of other sizes, which only the model's own export can know.
        """
        import torch

        dims = {d.name: d for spec in self.inputs for d in spec.shape if isinstance(d, Dim)}
        for name in dims:
            if not name.isidentifier():
                raise InputError(
                    f"an input has a size {name}, for which no other net can be exported",
                    file=self.path,
                    remedy=_BATCH_ALONE,
                )
        made = {name: torch.export.Dim(name, min=dim.minimum, max=dim.maximum) for name, dim in dims.items()}
        return tuple({i: made[d.name] for i, d in enumerate(spec.shape) if isinstance(d, Dim)} for spec in self.inputs)

    def _tensor(self, spec: Any) -> torch.Tensor | None:
        """The weight, buffer or constant that feeds an input of the graph; None for an input of the user."""
        if spec.target is None:
            return None
        tensor: torch.Tensor | None = self.program.state_dict.get(spec.target)
        return tensor if tensor is not None else self.program.constants.get(spec.target)

    def _specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        import torch
        from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

        signature = self.program.graph_signature
        nodes = {node.name: node for node in self.program.graph_module.graph.nodes}
        values: list[tuple[str, torch.Tensor]] = []
        for spec in signature.input_specs:
            if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
                continue
            if spec.kind is InputKind.USER_INPUT:
                value = nodes[spec.arg.name].meta["val"]
                if not isinstance(value, torch.Tensor):
                    raise InputError("an input is a number, not a tensor", file=self.path, layer=spec.arg.name)
                self._symbols.learn(spec.arg.name, value.shape)
                values.append((spec.arg.name, value))
            elif self._tensor(spec) is None:
                raise InputError("the file has no values for it", file=self.path, layer=str(spec.target))
        results: list[tuple[str, torch.Tensor]] = []
        for output in signature.output_specs:
            if output.kind is not OutputKind.USER_OUTPUT:
                continue
            if not isinstance(output.arg, TensorArgument):
                raise InputError(f"output {output.arg.name or output.arg} is not a tensor", file=self.path)
            results.append((output.arg.name, nodes[output.arg.name].meta["val"]))
        if not values or not results:
            raise InputError(
                f"the model has {len(values)} inputs and {len(results)} outputs, expected at least one of each",
                file=self.path,
            )
        return self._tensor_specs(values), self._tensor_specs(results, taken={name for name, _ in values})

    def _tensor_specs(
        self, values: list[tuple[str, torch.Tensor]], taken: set[str] | None = None
    ) -> tuple[TensorSpec, ...]:
        taken, specs = set(taken or ()), []
        for name, value in values:
            # A program may return a tensor twice, or return an input.
            unique, count = name, 1
            while unique in taken:
                unique, count = f"{name}_{count}", count + 1
            taken.add(unique)
            dtype = str(value.dtype).removeprefix("torch.")
            specs.append(TensorSpec(unique, dtype, tuple(self._symbols.dimension(size) for size in value.shape)))
        return tuple(specs)


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    import torch

    # NumPy has neither bfloat16 nor 8-bit floats.
    plain = (torch.float16, torch.float32, torch.float64)
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in plain:
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy()
    return array


def _check_evaluation(program: ExportedProgram, path: Path) -> None:
    """Refuse batch statistics and active dropout: an engine would compute something other than the user expects."""
    import torch

    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            name = node.target._schema.name.split("::")[-1]
            if not any(word in name for word in ("batch_norm", "dropout", "rrelu")):
                continue
            arguments = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False))
            arguments.update(node.kwargs)
            training = any(arguments.get(key) is True for key in ("training", "train"))
            if not training and "functional" not in name:
                continue
            if training and "batch_norm" in name and "running_mean" in arguments and arguments["running_mean"] is None:
                raise InputError(
                    "BatchNorm without running statistics uses those of each batch",
                    file=path,
                    layer=node.name,
                    remedy="train it with track_running_stats=True",
                )
            raise InputError("the model was exported in training mode", file=path, layer=node.name, remedy=_EVAL)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
