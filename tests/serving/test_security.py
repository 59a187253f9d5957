"""Tokens, TLS, and options that cannot be."""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
from pathlib import Path

import pytest
import requests
import tritonclient.grpc as triton_grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.utils import InferenceServerException

from tests.cli.conftest import Trtkp, trtkp
from tests.serving.servers import batch_input, images, running

__all__ = ["trtkp"]


def test_token_and_tls(bundles: Path, tmp_path: Path) -> None:
    _certificate(tmp_path)
    (tmp_path / "token").write_text("secret\n")
    options = ("--token-file", "token", "--tls-cert", "cert.pem", "--tls-key", "key.pem")
    environment = {"TRTKP_TOKEN": "other"}  # the file comes first
    with running(tmp_path, bundles / "kep", "--threads", "1", *options, **environment) as server:
        assert server.url.startswith("https://")
        session = requests.Session()
        session.trust_env = False  # a bundle of authorities named there would come first
        session.verify = str(tmp_path / "cert.pem")
        for path, header, status in (
            ("/v2/health/ready", None, 200),
            ("/v2", None, 401),
            ("/metrics", None, 401),
            ("/v2/models/kep", "Bearer other", 401),
            ("/v2/models/kep", "Bearer secret", 200),
        ):
            answer = session.get(server.url + path, headers={"Authorization": header}, timeout=10)
            assert answer.status_code == status
            assert status == 200 or answer.json() == {"error": "no valid bearer token"}
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(server.url.replace("https", "http"), timeout=10)
        chain = str(tmp_path / "cert.pem")
        with server.grpc_client(ssl=True, root_certificates=chain) as client:
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException, match="no valid bearer token") as caught:
                client.infer("kep", batch_input(triton_grpc, images(1)))
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
            result = client.infer(
                "kep", batch_input(triton_grpc, images(1)), headers={"authorization": "Bearer secret"}
            )
            assert result.as_numpy("y").shape == (1, 5)
        assert "secret" not in server.log_file.read_text()


def test_only_loopback_by_default(bundles: Path, tmp_path: Path) -> None:
    with running(tmp_path, bundles / "kep", "--threads", "1") as server:
        assert server.host.startswith("127.0.0.1:")
        assert server.grpc.startswith("127.0.0.1:")
    with running(tmp_path, bundles / "kep", "--threads", "1", "--host", "0.0.0.0") as server:  # noqa: S104 - meant
        assert [line["event"] for line in server.log] == ["anybody who reaches this port may use it", "ready"]


def test_refusals(trtkp: Trtkp, bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kep = bundles / "kep"
    Path("empty").write_text("")
    changed = shutil.copytree(kep, tmp_path / "changed")
    (changed / "engine.onnx").write_bytes(b"x" * (changed / "engine.onnx").stat().st_size)
    for arguments, words in (
        ((), "Missing argument"),
        (("nowhere",), "nowhere: no such bundle"),
        ((changed,), "engine.onnx: was changed since it was built"),
        ((kep, "--queue", "0"), "--queue 0: out of range; give 1 or more"),
        ((kep, "--max-delay", "-1"), "--max-delay -1: out of range; give 0 or more"),
        ((kep, "--timeout", "0"), "--timeout 0: out of range; give more than 0"),
        ((kep, "--max-body", "0"), "--max-body 0: out of range; give more than 0"),
        ((kep, "--port", "70000"), "--port 70000: out of range; give 0 to 65535"),
        ((bundles / "wide", "--max-batch", "1"), "--max-batch 1: the engine needs 2 or more"),
        ((kep, "--tls-cert", "empty"), "TLS needs a certificate and its key"),
        ((kep, "--tls-cert", "empty", "--tls-key", "empty"), "TLS cannot be set up"),
        ((kep, "--token-file", "empty"), "empty: the token file is empty"),
        ((kep, "--token-file", "none"), "none: no such file"),
        ((kep, "--log-level", "loud"), "--log-level loud: not known; use info or warning"),
        ((kep, "--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid port 8000"),
        ((kep, "--host", "a" * 70), "cannot listen on aaaa"),
        ((bundles / "net", bundles / "net"), "model net is given twice"),
    ):
        done = trtkp("serve", *arguments)
        assert done.status == 2, arguments
        assert words in done.err.splitlines()[-1], done.err
        assert "Traceback" not in done.err


def _certificate(folder: Path) -> None:
    """A key, and a certificate for this machine that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )


def test_packages_are_asked_for_first(trtkp: Trtkp, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkp.machine.packages.importable", lambda module: module != "grpc")
    done = trtkp("serve", bundles / "kep")
    assert (done.status, done.message) == (1, "serving needs grpcio; pip install 'trtkp[serve]'")
