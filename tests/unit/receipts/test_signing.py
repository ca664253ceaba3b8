"""A signature distinguishes the issuer of a receipt from a forger who only recomputes its digest."""

import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llm_auction_chain import ConfigurationError, MissingDependencyError
from llm_auction_chain.receipts import load_private_key, load_public_key, verify
from tests.unit.receipts.examples import changes_of, rich_receipt, with_new_digest

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
RECEIPT = rich_receipt()
PRIVATE = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
PUBLIC = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def hexadecimal(key):
    return key.public_key().public_bytes_raw().hex()


@pytest.mark.parametrize("made", [RECEIPT, RECEIPT.view("Capped")])
def test_a_signature_is_valid_for_its_receipt_and_its_key(made):
    signed = made.signed(KEY)
    for given in (signed, signed.as_dict()):
        for key in (None, KEY.public_key()):
            found = verify(given, public_key=key)
            assert (found.ok, found.signed_by) == (True, hexadecimal(KEY))
    assert signed.digest == made.digest
    assert verify(made).signed_by is None


def test_a_signature_by_another_key_is_a_difference():
    found = verify(RECEIPT.signed(OTHER), public_key=KEY.public_key())
    assert [difference.field for difference in found.differences] == ["signature.public_key"]
    assert found.signed_by == hexadecimal(OTHER)


def test_a_signature_that_names_a_key_it_is_not_by_is_a_difference():
    forged = RECEIPT.signed(OTHER).as_dict()
    forged["signature"]["public_key"] = hexadecimal(KEY)
    for key in (None, KEY.public_key()):
        found = verify(forged, public_key=key)
        assert [difference.field for difference in found.differences] == ["signature.value"]
        assert found.signed_by is None


def test_a_receipt_with_a_wrong_digest_cannot_be_signed_and_has_no_signer():
    for made in (RECEIPT, RECEIPT.view("Capped")):
        bait = made.model_copy(update={"digest": rich_receipt(seed=1).digest})
        with pytest.raises(ConfigurationError, match="not that of its content"):
            bait.signed(KEY)
        altered = {**made.signed(KEY).as_dict(), "model": "another"}
        found = verify(altered, public_key=KEY.public_key())
        assert (found.ok, found.signed_by) == (False, None)


def test_a_missing_signature_is_a_difference_if_a_key_is_required():
    found = verify(RECEIPT, public_key=KEY.public_key())
    assert [str(difference) for difference in found.differences] == [
        f"signature is None; there should be one by {hexadecimal(KEY)}"
    ]


def test_a_change_after_signing_is_a_difference_even_with_a_new_digest():
    signed = RECEIPT.view("Capped").signed(KEY).as_dict()
    for path, forged in changes_of(signed):
        if path[:1] not in ((), ("digest",)):
            assert not verify(with_new_digest(forged), public_key=KEY.public_key()).ok, path


@pytest.mark.parametrize("value", ["00" * 64, "ff" * 64])
def test_nonsense_in_place_of_keys_and_signatures_is_a_difference(value):
    signed = RECEIPT.signed(KEY).as_dict()
    for name, text in (("value", value), ("public_key", value[:64])):
        forged = {**signed, "signature": {**signed["signature"], name: text}}
        assert verify(forged).differences[0].field == "signature.value"


def test_keys_are_read_from_files_and_bytes(tmp_path):
    private = KEY.private_bytes(*PRIVATE, serialization.NoEncryption())
    locked = KEY.private_bytes(*PRIVATE, serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "public.pem").write_bytes(KEY.public_key().public_bytes(*PUBLIC))
    keys = load_private_key(tmp_path / "key.pem"), load_private_key(private), load_private_key(locked, b"secret")
    for key in keys:
        assert verify(RECEIPT.signed(key), public_key=load_public_key(str(tmp_path / "public.pem"))).ok


def test_keys_that_sign_no_receipt_are_refused(tmp_path):
    curve = generate_private_key(SECP256R1())
    pem = curve.private_bytes(*PRIVATE, serialization.NoEncryption())
    for call in (
        lambda: load_private_key(pem),
        lambda: load_public_key(curve.public_key().public_bytes(*PUBLIC)),
        lambda: RECEIPT.signed(curve),
        lambda: RECEIPT.signed("key"),
        lambda: verify(RECEIPT, public_key=curve.public_key()),
        lambda: verify(RECEIPT, public_key=KEY),
        lambda: verify(RECEIPT, public_key=hexadecimal(KEY)),
    ):
        with pytest.raises(ConfigurationError, match="Ed25519"):
            call()
    for load in (load_private_key, load_public_key):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            load(b"no key")
        with pytest.raises(ConfigurationError, match=r"absent\.pem cannot be read: No such file"):
            load(tmp_path / "absent.pem")
    locked = KEY.private_bytes(*PRIVATE, serialization.BestAvailableEncryption(b"secret"))
    for password in (None, b"wrong"):
        with pytest.raises(ConfigurationError, match="private key cannot be read"):
            load_private_key(locked, password)


def test_without_cryptography_receipts_hold_and_signatures_say_what_to_install(monkeypatch):
    signed = RECEIPT.signed(KEY)
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert verify(RECEIPT).ok
    for call in (
        lambda: RECEIPT.signed(KEY),
        lambda: verify(signed),
        lambda: verify(RECEIPT, public_key=KEY.public_key()),
        lambda: load_private_key(b""),
        lambda: load_public_key(b""),
    ):
        with pytest.raises(MissingDependencyError, match=r"llm-auction-chain\[signatures\]"):
            call()


def test_receipts_load_no_cryptography_before_they_need_it():
    code = "import sys, llm_auction_chain.receipts; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "False"
