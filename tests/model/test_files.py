"""Files that are no models: one line each, naming the file and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.conftest import make_net, rewrite_zip
from trtkp.errors import InputError
from trtkp.model import load_model
from trtkp.model.files import open_model, sniff


def one_line(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert caught.value.remedy


def test_missing(tmp_path: Path) -> None:
    one_line(tmp_path / "none.pt2", "no such file")


def test_directory(tmp_path: Path) -> None:
    one_line(tmp_path, "directory")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"# a text\nlayer: 3\n", "text file"),
        ('{"a": "é"}'.encode(), "text file"),
        (b"PK\x03\x04" + b"\0" * 50, "ZIP archive"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "no model format"),
        (b"\x08\x0a\x12\xff\xff\xff", "no model format"),
        (b"\x08\x0a", "not an ONNX model"),
        (b"\x80\x02garbage", "damaged|code"),
        (b"\x10\0\0\0\0\0\0\0{" + b"x" * 30, "damaged"),
        (b"\xff\xff\xff\x7f\0\0\0\0{}", "longer than the file"),
    ],
)
def test_no_model(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "file.pt2"
    path.write_bytes(content)
    one_line(path, match)


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    one_line(tmp_path / "pipe", "not a regular file")


def test_name_with_zero_byte() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_model("a\0b")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_off(program: Path, tmp_path: Path, share: float) -> None:
    data = program.read_bytes()
    path = tmp_path / "cut.pt2"
    path.write_bytes(data[: int(len(data) * share)])
    one_line(path, "cut-off ZIP")


def test_names_do_not_matter(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "program.onnx"
    path.write_bytes(program.read_bytes())
    assert load_model(path).format == "pt2"


def test_contents(program: Path, tmp_path: Path) -> None:
    import torch

    net = make_net()
    torch.save(net.state_dict(), tmp_path / "zip")
    torch.save(net.state_dict(), tmp_path / "old", _use_new_zipfile_serialization=False)
    torch.jit.script(net).save(str(tmp_path / "script"))
    rewrite_zip(program, tmp_path / "aoti", {"models/model.json": None}, {"data/aotinductor/model/a.so": b"x"})
    expected = {"zip": "torch-zip", "old": "pickle", "script": "torchscript", "aoti": "aotinductor"}
    for name, content in expected.items():
        with open_model(tmp_path / name) as handle:
            assert sniff(handle, tmp_path / name) == content
    one_line(tmp_path / "aoti", "compiled code")
