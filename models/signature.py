"""Signatures of model packages, made and checked without a network: who let a package into use.

``card.json.sig`` is the Ed25519 signature (RFC 8032), 64 bytes, of the bytes of ``card.json``, which hold the digest of
``model.onnx``. Keys are PEM files as ``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them, so
``openssl pkeyutl`` checks a signature as well.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from models.card import ModelCard, SegmenterCard, card_bytes, read_package
from models.command import command_parser
from models.durable import write_whole
from models.errors import Refusal

PublicKey: TypeAlias = Ed25519PublicKey
SIGNATURE = "card.json.sig"
_NO_KEY = "A key file must hold an Ed25519 key in PEM: openssl genpkey -algorithm ed25519, openssl pkey -pubout."


def read_private_key(file: Path) -> Ed25519PrivateKey:
    """Read a key to sign with; asks for its password where it has one.

    Raises
    ------
    Refusal
        ``config_invalid`` if it is none, or the password is wrong.
    """
    try:
        raw = file.read_bytes()
        try:
            key = load_pem_private_key(raw, None)
        except TypeError:  # it has a password
            key = load_pem_private_key(raw, getpass.getpass("password of the key: ").encode())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise Refusal("config_invalid", _NO_KEY) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Refusal("config_invalid", _NO_KEY)
    return key


def read_public_keys(files: Iterable[Path]) -> tuple[PublicKey, ...]:
    """Read the keys that are trusted.

    Raises
    ------
    Refusal
        ``config_invalid`` if one of them is none.
    """
    keys = []
    for file in files:
        try:
            key = load_pem_public_key(file.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise Refusal("config_invalid", _NO_KEY) from error
        if not isinstance(key, Ed25519PublicKey):
            raise Refusal("config_invalid", _NO_KEY)
        keys.append(key)
    return tuple(keys)


def sign(folder: Path, key: Ed25519PrivateKey) -> str:
    """Sign a model package in place; a signature that is there is replaced. Returns the package's identity.

    Raises
    ------
    Refusal
        ``package_invalid`` if it is not as released; ``config_invalid`` if its folder cannot be written.
    """
    card, _, sha256 = read_package(folder)
    try:
        write_whole(folder / SIGNATURE, key.sign(card_bytes(card)))
    except OSError as error:
        raise Refusal("config_invalid", "The signature cannot be written into the package's folder.") from error
    return sha256


def verify(folder: Path, card: ModelCard | SegmenterCard, keys: Sequence[PublicKey]) -> None:
    """Check that one of some keys signed a card that was read from a package's folder.

    Raises
    ------
    Refusal
        ``package_untrusted``.
    """
    try:
        signature = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise Refusal("package_untrusted", "The model package is not signed, and OVERREAD_TRUSTED_KEYS asks for that.") from error
    signed = card_bytes(card)  # exactly the bytes of card.json, or it would not have been read
    for key in keys:
        try:
            key.verify(signature, signed)
        except InvalidSignature:
            continue
        return
    raise Refusal("package_untrusted")


def main(argv: list[str]) -> int:
    """Run ``overread sign``; returns 0."""
    parser = command_parser(
        "sign",
        "Sign a model package in place, once it was reviewed. Sites with OVERREAD_TRUSTED_KEYS use signed ones only.",
        "overread sign packages/cxr-pneumonia --key release-key.pem",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="folder of a model package")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="Ed25519 private key, PEM")
    options = parser.parse_args(argv)
    print(f"{options.package}: signed, package {sign(options.package, read_private_key(options.key))}")
    return 0
