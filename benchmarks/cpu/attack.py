"""Attack a server in every way that the tests know, and write how late its health was answered and what it held.

    python -m benchmarks.cpu.attack --json benchmarks/results/attack.json [--checkout ANOTHER/CHECKOUT]

The server is started anew for every attack, with the default limits, and killed after a minute. With ``--checkout``,
the server of that folder, run by its ``.venv/bin/python``, is attacked too and is the column ``before``; this one's is
``after``. What is sent to both is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton_grpc

import trtkp
from benchmarks.provenance import provenance
from tests.attack import rest, rpc
from tests.attack.harness import Record, attacked
from tests.attack.servers import attacked_server, build_large
from tests.models import write_classifier
from tests.serving.servers import Server, batch_input, images
from trtkp.pipeline.options import BuildOptions

#: Seconds after which an attacker is killed, and then its server: nothing waits for that any longer.
_ATTACK_S, _SERVER_S = 40.0, 60.0


def main() -> None:
    """Run all attacks, and print and write what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--checkout", type=Path, help="folder whose server is attacked too, as the one before")
    parser.add_argument("--only", nargs="*", help="attacks, such as 'http resets'")
    options = parser.parse_args()
    columns: dict[str, Path | None] = {"after": None}
    if options.checkout is not None:
        columns = {"before": options.checkout.absolute(), "after": None}
    attacks = [(f"{name} {attack}", name, attack) for name, of in _MODULES.items() for attack in of.ATTACKS]
    if unknown := set(options.only or ()) - {title for title, _, _ in attacks}:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    report: dict[str, Any] = {"provenance": provenance(), "attacks": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_classifier(folder / "net.onnx")
        threads = BuildOptions(threads=1)
        trtkp.build(folder / "net.onnx", folder / "kep", method="kep", share="per-layer", options=threads)
        large = build_large(folder)
        for title, protocol, attack in attacks:
            if options.only and title not in options.only:
                continue
            row = report["attacks"][title] = {}
            for column, checkout in columns.items():
                row[column] = _attack(folder, large, checkout, protocol, attack)
                print(f"{title:28} {column:7} {_summary(row[column])}", flush=True)
                if options.json is not None:  # after each: one of them may take the machine down
                    options.json.write_text(json.dumps(report, indent=1) + "\n")


_MODULES = {"http": rest, "grpc": rpc}


def _attack(folder: Path, large: Path, checkout: Path | None, protocol: str, attack: str) -> dict[str, Any]:
    load = os.getloadavg()[0]
    try:
        with attacked_server(folder, folder / "kep", large, checkout) as server:
            end = threading.Timer(_SERVER_S, server.process.kill)
            end.start()
            try:
                record = _run(server, protocol, attack)
            finally:
                end.cancel()
            died = server.process.poll() is not None
    except Exception as error:  # an old server may not survive; the others are attacked all the same
        return {"load_average": load, "failed": f"{type(error).__name__}: {error}"[:300]}
    return {
        "load_average": load,
        "health_s": {name: round(seconds, 3) for name, seconds in record.health_s.items()},
        "calm_s": round(record.calm_s, 3),
        "memory_mib": (record.peak_bytes - record.before_bytes) >> 20,
        "served": record.served,
        "lost": sum(record.lost.values()),
        "losses": dict(record.lost.most_common(5)),
        "statuses": record.statuses,
        "errors_logged": len(record.errors),
        "ended": died,
    }


def _run(server: Server, protocol: str, attack: str) -> Record:
    if protocol == "http":
        return rest.run_attack(server, attack, _ATTACK_S)
    with server.grpc_client() as client:

        def behave() -> None:
            answer = client.infer("kep", batch_input(triton_grpc, images(1)), client_timeout=_ATTACK_S)
            assert answer.as_numpy("y").shape == (1, 5)

        behave()
        return attacked(server, "tests.attack.rpc", attack, behave, _ATTACK_S)


def _summary(result: dict[str, Any]) -> str:
    if "failed" in result:
        return str(result["failed"])
    health = result["health_s"]
    return (
        f"health {health['http']:.2f} s HTTP, {health['grpc']:.2f} s gRPC; {result['memory_mib']} MiB; "
        f"{result['served']} served, {result['lost']} lost"
    )


if __name__ == "__main__":
    main()
