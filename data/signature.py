"""Signatures: Ed25519 over every file of an artifact, verified before anything is parsed.

`NAME.sig` is text: a first line with the signature of all that follows, then a line for each file,
`SHA-256  name`, as `sha256sum` prints it. The signature is checked before those lines are read, and
the files' digests before anything in the files is.
"""

from __future__ import annotations

import base64
import binascii
import glob
import os
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MissingPackage, SignatureError, UsageError
from .files import digest_of, write_atomically

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

VARIABLE = "RTSEG_REQUIRE_SIGNATURE"  # a public key, for this process and those that it starts
PASSWORD = "RTSEG_KEY_PASSWORD"  # of an encrypted private key
INSTALL = 'signatures need the cryptography package: pip install "rtseg[sign]"'
TITLE, INLINE = b"rtseg signature 1 ", "ed25519:"
LARGEST = 1 << 20  # bytes of a signature file or a key
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\0]+)")


def signature_path(path: Path) -> Path:
    """Beside the artifact."""
    return path.with_name(path.name + ".sig")


def write_keys(path: Path) -> str:
    """Make a key pair: `path`, PKCS8 PEM that only its owner can read, and `path`.pub.

    Returns:
        The public key as `ed25519:BASE64`, which goes wherever its file would.

    Raises:
        UsageError: one of the two files is there already.
        MissingPackage: cryptography is not installed.
    """
    serialization = _cryptography().serialization
    key = _cryptography().Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    beside = path.with_name(path.name + ".pub")
    if beside.exists():
        raise UsageError(f"{beside} is there already: name another file, no key is overwritten")
    try:
        write_atomically(path, private, mode=0o600, replaces=False)
    except FileExistsError as error:
        raise UsageError(
            f"{path} is there already: name another file, no key is overwritten"
        ) from error
    write_atomically(beside, public)
    return inline_key(key.public_key())


def inline_key(key: ed25519.Ed25519PublicKey) -> str:
    """A public key as text."""
    return INLINE + base64.b64encode(key.public_bytes_raw()).decode()


def read_public_key(what: str | os.PathLike[str]) -> ed25519.Ed25519PublicKey:
    """A public key: a PEM file, or `ed25519:BASE64`.

    Raises:
        UsageError: it is none.
        MissingPackage: cryptography is not installed.
    """
    tools = _cryptography()
    text = os.fspath(what)
    try:
        if text.startswith(INLINE):
            raw = base64.b64decode(text.removeprefix(INLINE), validate=True)
            return tools.Ed25519PublicKey.from_public_bytes(raw)
        key = tools.serialization.load_pem_public_key(_read(Path(text)))
    except (ValueError, tools.UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{text} is no public Ed25519 key: name the .pub file that `rtseg sign --new-key` wrote"
        ) from error
    if not isinstance(key, tools.Ed25519PublicKey):
        raise UsageError(f"{text} is a key of another kind: signatures are of Ed25519")
    return key


def read_private_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """A private key from a PEM file; the password of an encrypted one is in RTSEG_KEY_PASSWORD.

    Raises:
        UsageError: it is none, or its password is wrong.
        MissingPackage: cryptography is not installed.
    """
    tools = _cryptography()
    password = os.environ.get(PASSWORD, "").encode() or None
    try:
        key = tools.serialization.load_pem_private_key(_read(path), password)
    except TypeError as error:  # a password is missing, or there is one for a plain key
        raise UsageError(
            f"{path} is {'not encrypted: unset' if password else 'encrypted: set'} {PASSWORD}"
        ) from error
    except (ValueError, tools.UnsupportedAlgorithm) as error:
        raise UsageError(
            f"{path} is no private Ed25519 key, or {PASSWORD} is not its password: make one with "
            "`rtseg sign --new-key`"
        ) from error
    if not isinstance(key, tools.Ed25519PrivateKey):
        raise UsageError(f"{path} is a key of another kind: signatures are of Ed25519")
    return key


def write_signature(path: Path, files: Iterable[Path], key: ed25519.Ed25519PrivateKey) -> Path:
    """Sign files of one folder.

    Args:
        path: of the artifact, whose name the signature takes.
        files: all that is read with it, itself too.
        key: the private key.

    Returns:
        The path of the signature.
    """
    lines = "".join(f"{digest_of(each)}  {each.name}\n" for each in files).encode()
    signature = base64.b64encode(key.sign(TITLE + lines))
    write_atomically(signature_path(path), TITLE + signature + b"\n" + lines)
    return signature_path(path)


def verify_signature(
    path: Path, key: str | os.PathLike[str], read: Mapping[str, bytes] | None = None
) -> None:
    """Check that a key signed this artifact. Its files are hashed, and nothing in them is parsed.

    Args:
        path: of the artifact.
        key: as `read_public_key` takes it.
        read: content by file name, of files that were read already: that is what is hashed.

    Raises:
        SignatureError: it is unsigned, another key signed it, or a file was changed or added.
        UsageError: the key is none.
    """
    public = read_public_key(key)
    if not path.is_file():
        raise SignatureError(f"no signed artifact at {path}")
    signed = _read_manifest(path, public)
    if path.name not in signed:
        raise SignatureError(
            f"the signature of {path} is of {', '.join(signed)}: give the file that name again"
        )
    for name, expected in signed.items():
        each, known = path.with_name(name), (read or {}).get(name)
        if known is None and not each.is_file():
            raise SignatureError(f"{each} is signed and missing: copy it too")
        if (digest_of(each) if known is None else sha256(known).hexdigest()) != expected:
            raise SignatureError(f"{each} was changed since it was signed: copy or sign it again")
    if added := [each for each in companions(path) if each.name not in signed]:
        raise SignatureError(f"{added[0]} is not covered by the signature: remove it or sign again")


def _read_manifest(path: Path, key: ed25519.Ed25519PublicKey) -> dict[str, str]:
    """{file name: SHA-256} of a signature, once that is known to be the key's."""
    beside = signature_path(path)
    try:
        content = _read(beside)
    except FileNotFoundError as error:
        raise SignatureError(
            f"{path} is not signed: {beside.name} must be beside it; `rtseg sign` makes one"
        ) from error
    first, _, lines = content.partition(b"\n")
    try:  # a first line of another format leaves no signature of this one
        signature = base64.b64decode(first.removeprefix(TITLE), validate=True)
        key.verify(signature, TITLE + lines)
    except (ValueError, binascii.Error, _cryptography().InvalidSignature) as error:
        raise SignatureError(
            f"{beside} is not a signature by the required key ({inline_key(key)}): get the "
            "artifact from who has that key, or require another"
        ) from error
    found = [_LINE.fullmatch(line) for line in lines.decode().splitlines()]
    return {match[2]: match[1] for match in found if match}


def companions(path: Path) -> list[Path]:
    """The files that are read with an artifact by their names, as far as they are there."""
    if path.suffix in (".onnx", ".safetensors"):
        return []
    names = [
        path.name + ".json",
        *([path.with_suffix(".bin").name] if path.suffix == ".xml" else []),
    ]
    # Of an engine for several sizes one a size.
    ends = ("reference.npz", "labels.npz")
    beside = sorted(path.parent.glob(glob.escape(path.name) + ".*"))
    names += [each.name for each in beside if each.name.endswith(ends)]
    return [each for name in names if (each := path.with_name(name)).is_file()]


def require(key: str | os.PathLike[str]) -> None:
    """Have this process, and those that it starts, read no artifact or checkpoint that `key` did
    not sign.

    Raises:
        UsageError: it is no public key.
    """
    os.environ[VARIABLE] = inline_key(read_public_key(key))


def required_key() -> str | None:
    """The public key that files have to be signed by, if any."""
    return os.environ.get(VARIABLE) or None


def check_required(path: Path, read: Mapping[str, bytes] | None = None) -> None:
    """Refuse a file that the required key did not sign; to be called before it is parsed. read:
    as of `verify_signature`."""
    if (key := required_key()) is not None:
        verify_signature(path, key, read)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST)


class _Tools:
    """What is used of cryptography."""

    def __init__(self) -> None:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import (
            Ed25519PrivateKey,
            Ed25519PublicKey,
        )

        self.serialization = serialization
        self.Ed25519PrivateKey, self.Ed25519PublicKey = Ed25519PrivateKey, Ed25519PublicKey
        self.InvalidSignature = InvalidSignature
        self.UnsupportedAlgorithm = UnsupportedAlgorithm


def _cryptography() -> _Tools:
    try:
        return _Tools()
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
