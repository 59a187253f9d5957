"""``trtkp export-index``: V-SKP's lists in the formats of its authors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from trtkp.cli.parameters import command
from trtkp.settings import Setting

__all__ = ["export_index"]


@command
def export_index(
    path: Annotated[Path, Setting("What trtkp prune or trtkp build wrote.", argument=True)],
    output: Annotated[Path, Setting("File to write, .safetensors.", short="-o", essential=True)],
    form: Annotated[
        Literal["bitmap", "list"],
        Setting("bitmap, with one bit for each kernel, or list, with one int32 for each kept kernel.", essential=True),
    ] = "bitmap",
) -> None:
    """Write the lists of whole kernels in V-SKP's own formats; trtkp prune --index takes them."""
    from trtkp.bundle import load
    from trtkp.bundle.pruned import is_pruned, load_pruned
    from trtkp.pruning.methods.vskp_lists import save_index

    save_index(output, (load_pruned(path) if is_pruned(path) else load(path)).index_sets, form)
