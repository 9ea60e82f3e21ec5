"""`rtseg sbom`: the bill of materials of an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import show
from ._options import Json, RequireSignature


def sbom(
    file: Annotated[Path, Argument(metavar="ARTIFACT", help="An artifact.")],
    out: Annotated[
        Path | None, Option("-o", "--out", help="File to write; else ARTIFACT.cdx.json.")
    ] = None,
    license: Annotated[
        str | None, Option(help="License of the weights; else what their checkpoint says.")
    ] = None,
    data: Annotated[
        str | None, Option(help="What they were trained on; else what their checkpoint says.")
    ] = None,
    data_license: Annotated[
        str | None, Option("--data-license", help="License of the training data.")
    ] = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Write an artifact's bill of materials (CycloneDX).

    It lists the files with their SHA-256, the libraries that built it and that it needs, and the
    licenses of weights and training data.

    rtseg sbom artifacts/csfcn_512x1024_fp16.onnx
    """
    from ..runtime.sbom import write_sbom

    written = write_sbom(file, out, license, data, data_license)
    show(json.dumps({"file": str(written)}), str(written), as_json)
