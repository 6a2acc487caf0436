# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions, fingerprints, and the model's own arithmetic."""

from __future__ import annotations

import base64
import datetime
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import model, spki, versions


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("5.6.2919", (5, 6, 2919)),
        ("5.4.2031-standin", (5, 4, 2031)),
        ("3.15", (3, 15, 0)),
        (" 4.11.1 ", (4, 11, 1)),
        ("5", None),
        ("v5.6.1", None),
        ("5.6.x", None),
        ("", None),
        ("5.6.2919 or so", None),
    ],
)
def test_versions(text, parsed):
    assert versions.parse(text) == parsed


@pytest.mark.parametrize(
    ("text", "old"),
    [("3.14.9999", True), ("2.99.1", True), ("3.15.0", False), ("3.16.1", False), ("10.0.1", False), ("?", False)],
)
def test_too_old(text, old):
    assert versions.too_old(text) is old


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5.4.1", "5.4.1", True),
        ("5.4.1", "5.4.2", False),
        ("5.4.1", "5.4.1-fips", False),
        (None, "5.4.1", None),
        ("5.4.1", "", None),
    ],
)
def test_same_release(one, other, same):
    assert versions.same(one, other) is same


def certificate(key, algorithm, version_one=False):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, algorithm)
    )


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        (lambda: rsa.generate_private_key(65537, 4096), hashes.SHA256()),
        (lambda: ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()),
        (ed25519.Ed25519PrivateKey.generate, None),
    ],
)
def test_fingerprint_is_that_of_the_public_key(make, algorithm):
    key = make()
    cert = certificate(key, algorithm)
    expected = hashlib.sha256(
        key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()
    pem = cert.public_bytes(serialization.Encoding.PEM).decode()
    assert spki.fingerprint(pem) == expected
    assert spki.fingerprint("text before\n" + pem.replace("\n", "\r\n") + pem) == expected


def test_a_certificate_cut_anywhere_is_no_certificate():
    der = certificate(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    for length in range(len(der)):
        with pytest.raises(ValueError):
            spki.subject_public_key_info(der[:length])


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error_and_no_crash(data):
    with pytest.raises(ValueError):
        spki.fingerprint(
            "-----BEGIN CERTIFICATE-----\n" + base64.b64encode(data).decode() + "\n-----END CERTIFICATE-----"
        )


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----"])
def test_what_is_no_pem_is_an_error(text):
    with pytest.raises(ValueError):
        spki.fingerprint(text)


def ring(address, code="UN", datacenter="dc1"):
    return model.RingNode(datacenter, code, address, f"id-{address}", "rack1")


def node(name, address, ready=True, datacenter="dc1"):
    return model.KubeNode(name, (address,), ready, datacenter, "2026-11-22T01:00:00Z", "v1.32.0")


def test_ring_addresses_may_be_those_of_pods():
    pods = [model.Pod("cassandra-0", "cassandra", "n1", "Running", True, "192.168.0.5")]
    (member,) = model.compose([node("n1", "10.0.0.1")], pods, [ring("192.168.0.5")])
    assert member.ring is not None and member.up(True)
    assert member.answers_to(["192.168.0.5"])


def test_a_node_that_only_the_ring_knows_is_a_member_still():
    members = model.compose([node("n1", "10.0.0.1")], [], [ring("10.0.0.1"), ring("10.0.0.9", "DN", "oor")])
    assert [(member.name, member.in_kubernetes, member.up(True)) for member in members] == [
        ("n1", True, True),
        ("10.0.0.9", False, False),
    ]


@pytest.mark.parametrize(
    ("ready", "code", "ring_known", "up"),
    [
        (True, "UN", True, True),
        (True, "DN", True, False),
        (True, "UJ", True, False),
        (True, None, True, False),
        (True, None, False, True),
        (False, "UN", True, False),
        (None, "UN", True, False),
        (None, None, False, False),
    ],
)
def test_up_needs_everyone_to_say_so(ready, code, ring_known, up):
    (member,) = model.compose([node("n1", "10.0.0.1", ready)], [], [ring("10.0.0.1", code)] if code else None)
    assert member.up(ring_known) is up
