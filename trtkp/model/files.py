"""Opening a model file, and finding its format from its content, never from its name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Literal

from trtkp.errors import InputError
from trtkp.files import open_regular
from trtkp.model.zipcheck import open_zip

__all__ = ["Content", "digest_of", "open_model", "sniff"]

Content = Literal["program", "torchscript", "torch-zip", "pickle", "safetensors", "onnx", "aotinductor"]

_REMEDY = "give a file written by torch.export.save, a state dict, or an .onnx file"
_ZIP = b"PK\x03\x04"


def open_model(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a model file. It is checked and loaded through this one handle, so it cannot be exchanged in between.

    Raises:
        InputError: the path does not exist, is no regular file, cannot be read, or the file is empty.
    """
    handle = open_regular(path, "model file", _REMEDY)
    if os.fstat(handle.fileno()).st_size == 0:
        handle.close()
        raise InputError("is empty", file=path, remedy=_REMEDY)
    return handle


def digest_of(handle: IO[bytes], more: bytes = b"") -> str:
    """SHA-256 of the whole file followed by ``more``, in hexadecimal. The handle is at its start afterwards."""
    handle.seek(0)
    digest = hashlib.file_digest(handle, "sha256")  # type: ignore[arg-type]
    digest.update(more)
    handle.seek(0)
    return digest.hexdigest()


def sniff(handle: IO[bytes], path: Path) -> Content:
    """The format of a file, from its content.

    Raises:
        InputError: trtkp reads no such format, or the file is a broken ZIP archive.
    """
    handle.seek(0)
    head = handle.read(4096)
    handle.seek(0)
    if head.startswith(_ZIP):
        return _sniff_zip(handle, path)
    if _is_safetensors(head):
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if _looks_like_onnx(head):
        return "onnx"
    what = "is a text file, not a model" if _is_text(head) else "is no model format that trtkp knows"
    raise InputError(what, file=path, remedy=_REMEDY)


def _sniff_zip(handle: IO[bytes], path: Path) -> Content:
    try:
        with open_zip(handle, path) as archive:
            names = archive.namelist()
    finally:
        handle.seek(0)
    inner = {name.split("/", 1)[-1] for name in names}
    if any(name.startswith("models/") for name in inner) or "serialized_exported_program.json" in names:
        return "program"
    if any(name.startswith("data/aotinductor/") for name in inner):
        return "aotinductor"
    if "data.pkl" in inner:
        is_script = "constants.pkl" in inner or any(name.startswith("code/") for name in inner)
        return "torchscript" if is_script else "torch-zip"
    raise InputError("is a ZIP archive, but none that PyTorch wrote", file=path, remedy=_REMEDY)


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _looks_like_onnx(head: bytes) -> bool:
    # Protobuf has no magic number. A ModelProto is a sequence of fields numbered 1 (ir_version) to 25, and the programs
    # that write ONNX files start with one of these tags.
    tag = head[0]
    if tag == 0x08:
        return len(head) > 1 and head[1] < 0x80
    return tag in (0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x42) and not _is_text(head)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(char.isprintable() or char in "\r\n\t\f" for char in text)
