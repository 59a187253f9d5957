"""The C interface of `plugins/capi/trtkp.h` through ctypes: its structures, its calls, its errors as ours."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from trtkp.errors import InputError, JobError

__all__ = ["INTERFACE_VERSION", "ConvDesc", "ConvTensors", "Library", "find_library", "load_library"]

#: ``TRTKP_INTERFACE_VERSION`` of the header that the structures below mirror.
INTERFACE_VERSION = 2

_PACKAGE = Path(__file__).parents[1]
_REMEDY = "build it with TRTKP_CUDA_ARCHITECTURES=native pip install . (needs nvcc), or name one with TRTKP_LIBRARY"
_MOST_TACTICS = 256
_OK, _INVALID_ARGUMENT, _UNSUPPORTED = 0, 1, 2
#: cudaErrorNoKernelImageForDevice as the runtime words it.
_NO_IMAGE = "no kernel image"


class ConvDesc(ctypes.Structure):
    """``trtkpConvDesc``."""

    _fields_ = [
        ("structSize", ctypes.c_uint32),
        ("interfaceVersion", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in (
            "dataType", "batch", "height", "width", "channels", "filters", "kernelRows", "kernelColumns",
            "strideH", "strideW", "padTop", "padLeft", "padBottom", "padRight", "dilationH", "dilationW", "groups",
            "listKind", "listGroups", "listLength", "rows", "listBlock", "xPitch", "yPitch", "residualPitch",
            "hasBias", "hasResidual", "activation",
        )),
        ("alpha", ctypes.c_float),
        ("allowTf32", ctypes.c_int32),
        ("twoFour", ctypes.c_int32),
    ]  # fmt: skip

    @classmethod
    def of(cls, **fields: Any) -> ConvDesc:
        """A description with its size and version filled in; a field that is not given is 0."""
        return cls(structSize=ctypes.sizeof(cls), interfaceVersion=INTERFACE_VERSION, **fields)


class ConvTensors(ctypes.Structure):
    """``trtkpConvTensors``: addresses in device memory."""

    _fields_ = [
        ("structSize", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        *((name, ctypes.c_void_p) for name in (
            "x", "weight", "index", "rowGroup", "rowFilter", "bias", "residual", "y", "workspace",
        )),
        ("workspaceBytes", ctypes.c_size_t),
        ("metadata", ctypes.c_void_p),
    ]  # fmt: skip

    @classmethod
    def of(cls, **fields: Any) -> ConvTensors:
        """Tensors with the structure's size filled in; a tensor that is not given is null."""
        return cls(structSize=ctypes.sizeof(cls), **fields)


class Library:
    """A loaded library. Calls check their arguments in C++ and raise what it reports.

    Args:
        path: the shared library.

    Raises:
        InputError: it cannot be loaded, is no library of trtkp, or speaks another version of the interface.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise InputError(f"cannot be loaded: {error}", file=path, remedy=_REMEDY) from error
        if not hasattr(self._handle, "trtkpInterfaceVersion"):
            raise InputError("no library of trtkp: trtkpInterfaceVersion is missing", file=path, remedy=_REMEDY)
        version = self._handle.trtkpInterfaceVersion()
        if version != INTERFACE_VERSION:
            raise InputError(
                f"interface version {version}, this trtkp speaks {INTERFACE_VERSION}", file=path, remedy=_REMEDY
            )
        self._handle.trtkpLastError.restype = ctypes.c_char_p
        self._handle.trtkpTacticName.restype = ctypes.c_char_p
        #: Tactic of a packed convolution to its number, in the order of the numbers.
        self.tactic_numbers = dict(self._names())
        #: Whether kernels run on the CPU under the emulator of the tests: pointers are host memory then.
        self.emulated = hasattr(self._handle, "trtkpEmulated")

    def output_size(self, desc: ConvDesc) -> tuple[int, int]:
        """P and Q."""
        height, width = ctypes.c_int32(), ctypes.c_int32()
        self._call("trtkpConvOutputSize", ctypes.byref(desc), ctypes.byref(height), ctypes.byref(width))
        return height.value, width.value

    def check_lists(self, desc: ConvDesc, index: int, row_group: int, row_filter: int) -> int:
        """Checks int32 lists at addresses in host memory; the block that they may promise."""
        block = ctypes.c_int32()
        lists = [ctypes.c_void_p(address) for address in (index, row_group, row_filter)]
        self._call("trtkpConvCheckLists", ctypes.byref(desc), *lists, ctypes.byref(block))
        return block.value

    def tactics(self, desc: ConvDesc) -> list[str]:
        """The tactics that compute the layer, by name."""
        found, count = (ctypes.c_int32 * len(self.tactic_numbers))(), ctypes.c_int32()
        self._call("trtkpConvTactics", ctypes.byref(desc), found, len(found), ctypes.byref(count))
        names = {number: name for name, number in self.tactic_numbers.items()}
        return [names[number] for number in found[: count.value]]

    def workspace_bytes(self, desc: ConvDesc, tactic: str) -> int:
        """Bytes of workspace that a launch needs."""
        size = ctypes.c_size_t()
        self._call("trtkpConvWorkspaceBytes", ctypes.byref(desc), self.number(tactic), ctypes.byref(size))
        return size.value

    def launch(self, desc: ConvDesc, tactic: str, tensors: ConvTensors, stream: int) -> None:
        """Enqueues on a ``cudaStream_t`` (0: the legacy default stream) of the current device."""
        number = self.number(tactic)
        self._call("trtkpConvLaunch", ctypes.byref(desc), number, ctypes.byref(tensors), ctypes.c_void_p(stream))

    def number(self, tactic: str) -> int:
        """The number of a tactic."""
        if tactic not in self.tactic_numbers:
            raise InputError(f"tactic {tactic}: not known", remedy=f"use one of {', '.join(self.tactic_numbers)}")
        return self.tactic_numbers[tactic]

    def _names(self) -> Iterator[tuple[str, int]]:
        for number in range(_MOST_TACTICS):  # not every number is a tactic
            name = self._handle.trtkpTacticName(number)
            if name is not None and not name.startswith(b"dynamic_"):  # those are of trtkpDynamicDesc
                yield name.decode(), number

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._handle, function)(*arguments)
        if status == _OK:
            return
        message = (self._handle.trtkpLastError() or b"").decode(errors="replace")
        if status in (_INVALID_ARGUMENT, _UNSUPPORTED):
            raise InputError(f"{function}: {message}")
        remedy = None
        if _NO_IMAGE in message:
            remedy = f"{self.path} is not built for this GPU: {_REMEDY}"
        raise JobError(f"{function}: {message}", remedy=remedy)


def find_library() -> Path:
    """``TRTKP_LIBRARY`` if it is set, else the package's own, else the newest one that CMake built in this checkout.

    Raises:
        InputError: there is none.
    """
    if named := os.environ.get("TRTKP_LIBRARY"):
        if not Path(named).is_file():
            raise InputError("TRTKP_LIBRARY names no file", file=named, remedy="correct or unset it")
        return Path(named)
    own = _PACKAGE / "lib" / "libtrtkp.so"
    if own.is_file():
        return own
    root = _PACKAGE.parent
    built = [*root.glob("build/plugins/libtrtkp.so"), *root.glob("build/*/plugins/libtrtkp.so")]
    if built and (root / "plugins").is_dir():
        return max(built, key=lambda path: path.stat().st_mtime)
    raise InputError("libtrtkp.so, the compiled kernels, is not installed", remedy=_REMEDY)


def load_library(path: Path | None = None) -> Library:
    """The library at ``path``, or the one that `find_library` finds; each is loaded once."""
    return _loaded((path or find_library()).resolve())


@cache
def _loaded(path: Path) -> Library:
    return Library(path)
