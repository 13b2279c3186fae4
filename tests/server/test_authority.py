"""Certificates for development: what is in them, whom they convince, and what is never overwritten."""

from __future__ import annotations

import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from agenthive_server.authority import Authority, AuthorityError, Pair, pair_in
from agenthive_server.kernel.clock import ManualClock, SystemClock
from agenthive_server.rpc.x509 import Certificate, read_certificates
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

DAY = 86_400.0


def read(pair: Pair) -> Certificate:
    return read_certificates(pair.certificate.read_bytes())[0]


def load(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes())


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def authority(tmp_path: Path, clock: ManualClock) -> Authority:
    return Authority.new(tmp_path / "tls", clock)


def test_a_server_is_known_by_its_hosts_and_by_the_names_of_its_machine(authority: Authority) -> None:
    pair = authority.issue_server(["hive.example", "*.hive.example", "192.0.2.7", "hive.example", "[2001:db8::1]"])
    names = ("hive.example", "*.hive.example", "localhost", "192.0.2.7", "2001:db8::1", "127.0.0.1", "::1")
    assert read(pair).names == names
    assert read(pair).subject == "hive.example"
    usage = load(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_a_client_is_who_its_common_name_says_and_no_server(authority: Authority) -> None:
    pair = authority.issue_client("ana@example")
    assert pair.certificate.name == "client-ana@example.pem"
    assert (read(pair).subject, read(pair).names) == ("ana@example", ())
    usage = load(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_openssl_accepts_the_chains_strictly(tmp_path: Path) -> None:
    authority = Authority.new(tmp_path, SystemClock())
    for pair, purpose in (
        (authority.issue_server(["a.example"]), "sslserver"),
        (authority.issue_client("a"), "sslclient"),
    ):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(tmp_path / "ca.pem")]
        subprocess.run([*command, str(pair.certificate)], check=True, capture_output=True)
        ssl.create_default_context().load_cert_chain(pair.certificate, pair.key)


def test_every_file_is_for_its_user_alone(authority: Authority) -> None:
    authority.issue_server([])
    authority.issue_client("ana")
    authority.renew("server", new_key=True)
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in authority.folder.iterdir()} == {0o600}
    assert len(list(authority.folder.iterdir())) == 6


@pytest.mark.parametrize("left", ["ca.pem", "ca-key.pem"])
def test_an_authority_is_never_overwritten_not_even_half_of_one(
    authority: Authority, clock: ManualClock, left: str
) -> None:
    for path in list(authority.folder.iterdir()):
        if path.name != left:
            path.unlink()
    before = (authority.folder / left).read_bytes()
    with pytest.raises(AuthorityError, match=f"{left} exists"):
        Authority.new(authority.folder, clock)
    assert (authority.folder / left).read_bytes() == before


def test_a_certificate_is_replaced_only_when_told(authority: Authority) -> None:
    first = read(authority.issue_server([]))
    with pytest.raises(AuthorityError, match=r"server\.pem exists"):
        authority.issue_server(["hive.example"])
    assert read(pair_in(authority.folder, "server")) == first
    assert read(authority.issue_server(["hive.example"], replace=True)).names[0] == "hive.example"


@pytest.mark.parametrize("host", ["a:1", "-a", "a b", "ä.example", "", "a..b", "x" * 64, "https://a", "*", "a.*.b"])
def test_a_host_that_is_none_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(AuthorityError, match="expected a DNS name"):
        authority.issue_server([host])
    assert not pair_in(authority.folder, "server").certificate.exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", "a b", "ä", "x" * 65, ".hidden"])
def test_a_principal_that_is_none_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(AuthorityError, match="expected 1 to 64 letters"):
        authority.issue_client(name)


def test_a_long_host_is_no_common_name(authority: Authority) -> None:
    host = f"{'a' * 60}.{'b' * 60}.example"
    made = read(authority.issue_server([host]))
    assert (made.subject, made.names[0]) == ("agenthive server", host)


async def test_renewing_keeps_names_key_and_length_of_life(authority: Authority, clock: ManualClock) -> None:
    pair = authority.issue_server(["hive.example"], days=30)
    old, key = read(pair), pair.key.read_bytes()
    await clock.advance(20 * DAY)
    authority.renew("server")
    new = read(pair)
    assert (new.names, new.subject, pair.key.read_bytes()) == (old.names, old.subject, key)
    assert new.serial != old.serial
    assert new.not_after - clock.now() == pytest.approx(30 * DAY, abs=2)
    authority.renew("server", new_key=True, days=5)
    assert pair.key.read_bytes() != key
    assert read(pair).not_after - clock.now() == pytest.approx(5 * DAY, abs=2)
    usage = load(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


async def test_a_renewed_authority_still_vouches_for_what_it_signed(authority: Authority, clock: ManualClock) -> None:
    server = load(authority.issue_server([]))
    await clock.advance(300 * DAY)
    renewed = load(authority.renew("ca", days=100))
    server.verify_directly_issued_by(renewed)
    assert read(Authority.open(authority.folder, clock).issue_client("ana")).subject == "ana"


def test_what_another_authority_made_is_not_renewed(authority: Authority, tmp_path: Path, clock: ManualClock) -> None:
    authority.issue_server([])
    other = Authority.new(tmp_path / "other", clock)
    pair_in(other.folder, "server").certificate.write_bytes(
        pair_in(authority.folder, "server").certificate.read_bytes()
    )
    with pytest.raises(AuthorityError, match="was not made by the authority"):
        other.renew("server")


async def test_nothing_outlives_its_authority(tmp_path: Path, clock: ManualClock) -> None:
    authority = Authority.new(tmp_path / "short", clock, days=10)
    ca = read(pair_in(authority.folder, "ca"))
    assert read(authority.issue_server([], days=365)).not_after == ca.not_after
    await clock.advance(11 * DAY)
    with pytest.raises(AuthorityError, match="has ended"):
        authority.issue_client("late")


def test_parts_that_are_missing_or_do_not_fit_are_named(
    authority: Authority, tmp_path: Path, clock: ManualClock
) -> None:
    with pytest.raises(AuthorityError, match=r"none/ca\.pem: No such file"):
        Authority.open(tmp_path / "none", clock)
    with pytest.raises(AuthorityError, match=r"client-nobody\.pem: No such file"):
        authority.renew("client-nobody")
    other = Authority.new(tmp_path / "other", clock)
    (other.folder / "ca-key.pem").write_bytes((authority.folder / "ca-key.pem").read_bytes())
    with pytest.raises(AuthorityError, match="is not that of the certificate"):
        Authority.open(other.folder, clock)
    (other.folder / "ca-key.pem").write_text("junk")
    with pytest.raises(AuthorityError, match="no private key in PEM form"):
        Authority.open(other.folder, clock)
