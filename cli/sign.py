"""`rtseg sign`: signs artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import show
from ._options import Json


def sign(
    files: Annotated[
        list[Path] | None, Argument(metavar="ARTIFACT...", help="Artifacts or checkpoints.")
    ] = None,
    key: Annotated[Path | None, Option(help="File of the private key that signs.")] = None,
    new_key: Annotated[
        Path | None, Option("--new-key", help="Make a key pair: this file, and FILE.pub.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign artifacts, so that `--require-signature` accepts them.

    The signature, ARTIFACT.sig, covers every file of the artifact and its card.

    rtseg sign --new-key release.key
    rtseg sign artifacts/csfcn_512x1024_fp16.engine --key release.key
    rtseg drive 0 --model artifacts/csfcn_512x1024_fp16.engine --require-signature release.key.pub
    """
    from ..data.signature import read_private_key, write_keys
    from ..runtime.signing import sign_artifact

    if (new_key is None) == (key is None) or (key is None) == bool(files):
        raise UsageError("give either ARTIFACT --key FILE, or --new-key FILE alone")
    if new_key is not None:
        public = write_keys(new_key)
        facts = {"private": str(new_key), "public": f"{new_key}.pub", "key": public}
        line = f"{new_key} signs: keep it secret\n{new_key}.pub verifies, and so does {public}"
        show(json.dumps(facts), line, as_json)
        return
    assert key is not None
    private = read_private_key(key)
    signatures = [str(sign_artifact(file, private)) for file in files or ()]
    show(json.dumps({"signatures": signatures}), "\n".join(signatures), as_json)
