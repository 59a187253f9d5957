"""ZIP tricks."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import pytest

from trtkp.errors import InputError
from trtkp.model.zipcheck import CheckedZip

PATH = Path("some.pt2")


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as target:
        warnings.simplefilter("ignore")
        for name, data in members:
            target.writestr(name, data)
    return buffer.getvalue()


def test_reads_below_the_root() -> None:
    checked = CheckedZip(io.BytesIO(archive([("a/x", b"12"), ("a/b/y", b"")])), PATH)
    assert checked.names == ["x", "b/y"]
    assert checked.read("x") == b"12"
    assert checked.read("b/y") == b""
    assert checked.size("x") == 2
    with pytest.raises(InputError, match="no member z"):
        checked.read("z")


def test_without_a_root() -> None:
    assert CheckedZip(io.BytesIO(archive([("version", b"8"), ("extra_files/a", b"")])), PATH).names[0] == "version"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (archive([("a/x", b"1"), ("a/x", b"2")]), "twice"),
        (archive([("/etc/x", b"1")]), "outside"),
        (archive([("a/../../x", b"1")]), "outside"),
        (archive([("a\\x", b"1")]), "forbidden"),
        (archive([("a/x", b"0" * 1_000_000)], zipfile.ZIP_DEFLATED), "compressed"),
        (archive([]), "0 members"),
    ],
)
def test_refused(data: bytes, match: str) -> None:
    with pytest.raises(InputError, match=match):
        CheckedZip(io.BytesIO(data), PATH)


def test_sizes_that_the_file_does_not_have() -> None:
    data = archive([("a/x", b"12345678")])
    # Both sizes in the central directory, which is what readers believe.
    start = data.rindex(b"PK\x01\x02")
    fake = data[: start + 20] + (1 << 30).to_bytes(4, "little") * 2 + data[start + 28 :]
    with pytest.raises(InputError, match="claim 1073741824 bytes"):
        CheckedZip(io.BytesIO(fake), PATH)


def test_overlapping_members() -> None:
    data = archive([("a/x", b"1" * 4000)])
    start = data.rindex(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    entry = data[start:end]
    entries = b"".join(entry.replace(b"a/x", b"a/" + bytes([98 + i])) for i in range(20))
    tail = bytearray(data[end:])
    tail[8:12] = (20).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    with pytest.raises(InputError, match="claim 80000 bytes"):
        CheckedZip(io.BytesIO(data[:start] + entries + bytes(tail)), PATH)


def test_wrong_checksum() -> None:
    data = archive([("a/x", b"12345678")]).replace(b"12345678", b"12345679")
    with pytest.raises(InputError, match="member x is damaged"):
        CheckedZip(io.BytesIO(data), PATH).read("x")
