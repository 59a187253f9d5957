"""Attack a server in every way that the tests know, and write how late its health was answered and what it held.

    python -m benchmarks.cpu.attack --json benchmarks/results/attack.json [--checkout ANOTHER/CHECKOUT]

The server is started anew for every attack, with the default limits. With ``--checkout`` it is that of another folder;
what is sent is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import trtkp
from benchmarks.provenance import provenance
from tests.attack import rest, rpc
from tests.attack.harness import Record, attacked
from tests.attack.servers import attacked_server, build_large
from tests.models import write_classifier
from tests.serving.servers import Server
from trtkp.pipeline.options import BuildOptions


def main() -> None:
    """Run all attacks, and print and write what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--checkout", type=Path, help="folder whose trtkp is the server; this one's by default")
    parser.add_argument("--only", nargs="*", help="names of attacks")
    options = parser.parse_args()
    checkout = options.checkout.absolute() if options.checkout else None
    report: dict[str, Any] = {"provenance": provenance(), "load_average_before": os.getloadavg()[0], "attacks": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_classifier(folder / "net.onnx")
        threads = BuildOptions(threads=1)
        trtkp.build(folder / "net.onnx", folder / "kep", method="kep", share="per-layer", options=threads)
        large = build_large(folder)
        for protocol, module in (("http", rest), ("grpc", rpc)):
            for attack in module.ATTACKS:
                if options.only and attack not in options.only:
                    continue
                report["attacks"][f"{protocol} {attack}"] = _attack(folder, large, checkout, module.__name__, attack)
                if options.json is not None:  # after each: one of them may take the machine down
                    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def _attack(folder: Path, large: Path, checkout: Path | None, module: str, attack: str) -> dict[str, Any]:
    try:
        with attacked_server(folder, folder / "kep", large, checkout) as server:
            return _run(server, module, attack).as_json()
    except Exception as error:  # an old server may not survive; the others are attacked all the same
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def _run(server: Server, module: str, attack: str) -> Record:
    if module == rest.__name__:
        return rest.run_attack(server, attack)
    import tritonclient.grpc as triton_grpc

    from tests.serving.servers import batch_input, images

    with server.grpc_client() as client:

        def behave() -> None:
            assert client.infer("kep", batch_input(triton_grpc, images(1))).as_numpy("y").shape == (1, 5)

        behave()
        return attacked(server, module, attack, behave)


if __name__ == "__main__":
    main()
