from __future__ import annotations

import copy

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from server.ed25519 import SodiumPublicKey

PRIVATE = Ed25519PrivateKey.generate()
OPENSSL = PRIVATE.public_key()
SODIUM = SodiumPublicKey(OPENSSL)
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def is_right(key: Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


@given(st.binary(max_size=600), st.integers(0, 63), st.integers(0, 255))
def test_both_libraries_judge_alike(data: bytes, place: int, change: int) -> None:
    signature = bytearray(PRIVATE.sign(data))
    signature[place] ^= change
    judged = is_right(SODIUM, bytes(signature), data)
    assert judged == is_right(OPENSSL, bytes(signature), data) == (change == 0)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_signature_is_of_its_own_text_only(signed: bytes, shown: bytes) -> None:
    assert is_right(SODIUM, PRIVATE.sign(signed), shown) == (signed == shown)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_wrong(length: int) -> None:
    assert not is_right(SODIUM, (PRIVATE.sign(b"text") * 2)[:length], b"text")


def test_a_signature_has_one_form_only() -> None:
    """RFC 8032, section 5.1.7: S is below the order of the group; adding the order must not make a second signature."""
    signature = PRIVATE.sign(b"text")
    twin = signature[:32] + (int.from_bytes(signature[32:], "little") + GROUP_ORDER).to_bytes(32, "little")
    assert not is_right(SODIUM, twin, b"text")


def test_a_key_of_small_order_verifies_nothing() -> None:
    """Its signature of anything would be right under the equation alone."""
    neutral = (1).to_bytes(32, "little")
    key = SodiumPublicKey(Ed25519PublicKey.from_public_bytes(neutral))
    assert not is_right(key, neutral + bytes(32), b"anything")


def test_it_stands_for_the_key_it_was_made_of() -> None:
    assert SODIUM == OPENSSL
    assert SodiumPublicKey(Ed25519PrivateKey.generate().public_key()) != SODIUM
    assert hash(SODIUM) == hash(SodiumPublicKey(OPENSSL))
    assert SODIUM.public_bytes_raw() == OPENSSL.public_bytes_raw()
    assert SODIUM.public_bytes(Encoding.Raw, PublicFormat.Raw) == OPENSSL.public_bytes_raw()
    assert copy.copy(SODIUM) is copy.deepcopy(SODIUM) is SODIUM
