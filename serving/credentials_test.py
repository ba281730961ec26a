from __future__ import annotations

import hashlib
import logging
import os
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from slipway.serving import credentials
from slipway.serving.credentials import CredentialError, TlsFiles, TokenFile

TOKEN = "0123456789abcdef"
OTHER = "fedcba9876543210"
LONGEST = "0123456789abcdef" * 32


def replace(path: Path, content: str | bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(new, path)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    digests = [hashlib.sha256(token.encode()).hexdigest() for token in (OTHER, LONGEST)]
    path.write_text(f"# a comment\n\n{TOKEN}\nsha256:{digests[0]}\nsha256:{digests[1].upper()}\n")
    return path


def test_tokens_plain_and_hashed(tokens: Path) -> None:
    file = TokenFile(tokens)
    assert file.has(TOKEN)
    assert file.has(OTHER)
    assert file.has(LONGEST)
    for wrong in ("", TOKEN[:-1], TOKEN + "0", "# a comment", "sha256:", "ä", TOKEN.upper()):
        assert not file.has(wrong)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", " has no token"),
        ("# only a comment\n", " has no token"),
        (f"{TOKEN}\nshort\n", ":2: no token: expected 16 to 512"),
        (f"{TOKEN} {TOKEN}\n", ":1: no token"),
        (f"{LONGEST}\n{LONGEST}0\n", ":2: no token"),
        ("sha256:12\n", ":1: no token"),
        ("täglich wechselndes wort\n", ":1: no token"),
    ],
)
def test_files_that_have_no_tokens(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(CredentialError) as caught:
        TokenFile(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{path}{expected}")
    assert TOKEN not in str(caught.value)


def test_a_file_is_not_looked_at_again_at_once(tokens: Path) -> None:
    file = TokenFile(tokens, check_seconds=3600)
    replace(tokens, "a-token-that-is-new")
    assert file.has(TOKEN)


def test_a_file_of_tokens_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"cannot read .*none: No such file or directory"):
        TokenFile(tmp_path / "none")


def test_tokens_are_read_again(tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = TokenFile(tokens, check_seconds=0)
    new = "a-token-that-is-new"
    replace(tokens, new)
    assert file.has(new)
    assert not file.has(TOKEN)
    # What is wrong changes nothing, and is said once.
    with caplog.at_level(logging.ERROR):
        replace(tokens, "short")
        assert file.has(new)
        assert file.has(new)
    (record,) = caplog.records
    assert "what was read before goes on to count" in record.message
    tokens.unlink()
    assert file.has(new)
    # That nobody is let in can be meant.
    caplog.clear()
    replace(tokens, "# nobody")
    assert not file.has(new)
    (record,) = caplog.records
    assert (record.levelname, record.message) == (
        "WARNING",
        f"{tokens} has no token: nobody is let in for one",
    )


def test_a_file_that_cannot_be_read_is_tried_again_until_it_can(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = TokenFile(tokens, check_seconds=0)
    new = "a-token-that-is-new"
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    replace(tokens, new)
    # Without a descriptor left, as without the right to read it: neither changes the file.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert file.has(TOKEN)
        assert file.has(TOKEN)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (record,) = caplog.records
    assert "Too many open files" in record.message
    assert file.has(new)


class Pki:
    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.certificate, self.key = directory / "server.pem", directory / "server.key"
        self.clients = directory / "clients.pem"
        self.clients.write_bytes(self.authority.cert_pem.bytes())
        self.issue()

    def issue(self, not_after: datetime | None = None) -> trustme.LeafCert:
        issued = self.authority.issue_cert("localhost", not_after=not_after)
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        return issued


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def test_certificates_that_belong_together(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    assert TlsFiles(pki.certificate, pki.key, None).credentials()
    assert TlsFiles(pki.certificate, pki.key, pki.clients).credentials()
    assert caplog.records == []


def test_a_certificate_that_has_expired_is_a_warning(
    pki: Pki, caplog: pytest.LogCaptureFixture
) -> None:
    pki.issue(not_after=datetime(2020, 1, 1))
    assert TlsFiles(pki.certificate, pki.key, pki.clients).credentials()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == (
        f"clients refuse the certificate in {pki.certificate}: certificate has expired"
    )


@pytest.mark.parametrize("year", [2020, 2040])
def test_when_a_certificate_expires_is_known_before_and_after(pki: Pki, year: int) -> None:
    expires = datetime(year, 5, 6, 7, 8, 9, tzinfo=UTC)
    pki.issue(not_after=expires)
    files = TlsFiles(pki.certificate, pki.key, pki.clients)
    assert files.expiry == expires.timestamp()
    pki.issue(not_after=expires + timedelta(days=1))
    assert files.expiry == expires.timestamp() + 86400


def test_the_first_certificate_of_a_chain_to_expire_counts(pki: Pki) -> None:
    pki.issue(not_after=datetime(9000, 1, 1, tzinfo=UTC))
    chain = pki.certificate.read_bytes() + pki.authority.cert_pem.bytes()
    pki.certificate.write_bytes(chain)
    authority = x509.load_pem_x509_certificate(pki.authority.cert_pem.bytes())
    expected = authority.not_valid_after_utc.timestamp()
    assert TlsFiles(pki.certificate, pki.key, None).expiry == expected


def test_a_certificate_that_goes_just_after_it_was_read_ends_no_handshake(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = TlsFiles(pki.certificate, pki.key, None)
    expires = datetime(2040, 5, 6, 7, 8, 9, tzinfo=UTC)
    pki.issue(not_after=expires)
    original = credentials._read
    keys: list[bytes] = []

    def read(path: Path) -> bytes:
        content = original(path)
        if path == pki.key:
            keys.append(content)
            if len(keys) == 2:
                pki.certificate.unlink()
        return content

    monkeypatch.setattr(credentials, "_read", read)
    assert files.expiry == expires.timestamp()
    assert not pki.certificate.exists()


@pytest.mark.parametrize("name", ["certificate", "key", "clients"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\n"])
def test_files_that_are_missing_or_nothing(pki: Pki, name: str, content: bytes | None) -> None:
    path: Path = getattr(pki, name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CredentialError) as caught:
        TlsFiles(pki.certificate, pki.key, pki.clients)
    assert str(path) in str(caught.value)


def test_a_key_of_another_certificate(pki: Pki) -> None:
    key = pki.key.read_bytes()
    pki.issue()
    pki.key.write_bytes(key)
    with pytest.raises(CredentialError, match=r"no certificate and its key.*key values mismatch"):
        TlsFiles(pki.certificate, pki.key, None)


def test_a_key_with_a_password_does_not_ask_for_it(pki: Pki) -> None:
    key = serialization.load_pem_private_key(pki.key.read_bytes(), None)
    pki.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(CredentialError, match="without a password"):
        TlsFiles(pki.certificate, pki.key, None)
