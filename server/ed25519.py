"""Ed25519 public keys (RFC 8032) that verify with libsodium, in half the time of OpenSSL.

They are public keys of :mod:`cryptography` all the same, so whoever takes one of those, as PyJWT does, takes these.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey


class SodiumPublicKey(Ed25519PublicKey):
    """The same key as the given one. Immutable, so its copies are itself."""

    def __init__(self, public: Ed25519PublicKey) -> None:
        self._public = public
        self._verifying = VerifyKey(public.public_bytes_raw())

    def verify(self, signature: Any, data: Any) -> None:
        """Returns when the signature is right.

        Args:
            signature: 64 bytes.
            data: what was signed.

        Raises:
            InvalidSignature: it is not, or has another length. libsodium also refuses keys and points of small order.
        """
        try:
            self._verifying.verify(bytes(data), bytes(signature))
        except (BadSignatureError, ValueError):
            raise InvalidSignature from None

    def public_bytes(self, encoding: Encoding, format: PublicFormat) -> bytes:  # noqa: A002 — the interface's name
        return self._public.public_bytes(encoding, format)

    def public_bytes_raw(self) -> bytes:
        return self._public.public_bytes_raw()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ed25519PublicKey) and self.public_bytes_raw() == other.public_bytes_raw()

    def __hash__(self) -> int:
        return hash(self.public_bytes_raw())

    def __copy__(self) -> SodiumPublicKey:
        return self

    def __deepcopy__(self, _memo: dict[Any, Any]) -> SodiumPublicKey:
        return self
