"""The C interface of `plugins/capi/trtkp.h` through ctypes: its structures and calls, with errors as our exceptions."""

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
#: Tactic numbers are below this. They have gaps: 2:4 tactics begin at 32, those of dynamic patterns at 48.
_MOST_TACTICS = 256
#: Values of ``trtkpStatus``.
_OK, _INVALID_ARGUMENT, _UNSUPPORTED = 0, 1, 2
#: Part of the CUDA runtime's message for cudaErrorNoKernelImageForDevice.
_NO_IMAGE = "no kernel image"


class ConvDesc(ctypes.Structure):
    """``trtkpConvDesc``: the description of a convolution. Field by field as in the header."""

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
        """A description with its size and version filled in. Fields that are not given are 0."""
        return cls(structSize=ctypes.sizeof(cls), interfaceVersion=INTERFACE_VERSION, **fields)


class ConvTensors(ctypes.Structure):
    """``trtkpConvTensors``: the addresses of a convolution's tensors in device memory."""

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
        """Tensors with the size of the structure filled in. Tensors that are not given are null."""
        return cls(structSize=ctypes.sizeof(cls), **fields)


class Library:
    """A loaded kernel library. C++ checks the arguments of every call, and its errors are raised here.

    `InputError` stands for an argument that is invalid or not supported, `JobError` for an error of CUDA.

    Attributes:
        path: the shared library.
        tactic_numbers: name of every tactic of packed convolutions to its number.
        emulated: whether kernels run on the CPU, under the emulator of the tests.

    Args:
        path: the shared library.

    Raises:
        InputError: the library cannot be loaded, is not one of trtkp, or has another version of the interface.
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
                f"interface version {version}, this trtkp needs {INTERFACE_VERSION}", file=path, remedy=_REMEDY
            )
        self._handle.trtkpLastError.restype = ctypes.c_char_p
        self._handle.trtkpTacticName.restype = ctypes.c_char_p
        #: In the order of the numbers.
        self.tactic_numbers = dict(self._names())
        #: With the emulator, all pointers are to host memory.
        self.emulated = hasattr(self._handle, "trtkpEmulated")

    def output_size(self, desc: ConvDesc) -> tuple[int, int]:
        """Height P and width Q of the output."""
        height, width = ctypes.c_int32(), ctypes.c_int32()
        self._call("trtkpConvOutputSize", ctypes.byref(desc), ctypes.byref(height), ctypes.byref(width))
        return height.value, width.value

    def check_lists(self, desc: ConvDesc, index: int, row_group: int, row_filter: int) -> int:
        """Check int32 lists in host memory. Returns 8 if they come in blocks of 8 channels, else 1.

        Args:
            desc: the convolution.
            index: address of the channels, taps or entries.
            row_group: address of the filter group of each row.
            row_filter: address of the filter of each row.
        """
        block = ctypes.c_int32()
        lists = [ctypes.c_void_p(address) for address in (index, row_group, row_filter)]
        self._call("trtkpConvCheckLists", ctypes.byref(desc), *lists, ctypes.byref(block))
        return block.value

    def tactics(self, desc: ConvDesc) -> list[str]:
        """Names of the tactics that can compute the layer."""
        found, count = (ctypes.c_int32 * len(self.tactic_numbers))(), ctypes.c_int32()
        self._call("trtkpConvTactics", ctypes.byref(desc), found, len(found), ctypes.byref(count))
        names = {number: name for name, number in self.tactic_numbers.items()}
        return [names[number] for number in found[: count.value]]

    def workspace_bytes(self, desc: ConvDesc, tactic: str) -> int:
        """Bytes of workspace that a launch of the tactic needs."""
        size = ctypes.c_size_t()
        self._call("trtkpConvWorkspaceBytes", ctypes.byref(desc), self.number(tactic), ctypes.byref(size))
        return size.value

    def launch(self, desc: ConvDesc, tactic: str, tensors: ConvTensors, stream: int) -> None:
        """Enqueue the convolution on a ``cudaStream_t`` of the current device. 0 is the legacy default stream."""
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
            if name is not None and not name.startswith(b"dynamic_"):  # those take a trtkpDynamicDesc
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
    """The path of the kernel library.

    It is ``TRTKP_LIBRARY`` if that is set, or else the library inside the package, or else the newest one that CMake
    built in this checkout.

    Raises:
        InputError: there is no library.
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
    """The library at ``path``, or the one that `find_library` finds. Each is loaded once per process."""
    return _loaded((path or find_library()).resolve())


@cache
def _loaded(path: Path) -> Library:
    return Library(path)
