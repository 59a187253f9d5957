"""``trtkp calibrate``: quantise a bundle or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from trtkp.calib.options import CalibrationOptions
from trtkp.cli.arguments import Json
from trtkp.cli.build import show
from trtkp.cli.console import progress
from trtkp.cli.parameters import Only, command
from trtkp.data.options import SAMPLE_FILES
from trtkp.pipeline.options import BuildOptions
from trtkp.settings import Setting

__all__ = ["calibrate"]


@command
def calibrate(
    *,
    source: Annotated[Path, Setting("An fp32 bundle, or a model file as trtkp build takes it.", argument=True)],
    output: Annotated[Path, Setting("Directory of the new bundle.", short="-o", essential=True)],
    data: Annotated[
        Path | None,
        Setting(f"Samples to calibrate with: {SAMPLE_FILES}.", essential=True),
    ] = None,
    precision: Annotated[Literal["int8", "fp8"], Setting("int8 or fp8.", short="-p", essential=True)] = "int8",
    calibration: CalibrationOptions,
    options: Annotated[
        BuildOptions,
        Only(
            "calibration_file",
            "arch",
            "input_shape",
            "trust_pickle",
            "backend",
            "min",
            "opt",
            "max",
            "targets",
            "device",
            "threads",
        ),
    ],
    json: Json = False,
) -> None:
    """Quantise a bundle or a model with explicit Q/DQ, calibrated on real data; sensitive layers stay as they were."""
    from trtkp.pipeline.calibrate import calibrate as calibrate_bundle

    with progress(quiet=json) as report:
        bundle = calibrate_bundle(
            source,
            output,
            data=data,
            kind=precision,
            calibration=calibration,
            calibration_file=options.calibration_file,
            options=options,
            progress=report,
        )
    show(bundle, json=json)
