# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies on a node's disk, and what a connection tells."""

from __future__ import annotations

import base64
import datetime
import json
import socket
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _node
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import spki
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Unreadable


@pytest.fixture(scope="module")
def pem():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_empty_directories_are_no_state(tmp_path):
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/nonexistent")
    paths = [str(tmp_path / name) for name in ("a", "file", "link", "missing")]
    assert _node.present_state(paths) == [str(tmp_path / "file"), str(tmp_path / "link")]
    (tmp_path / "a" / "b" / "c" / "deep").write_text("x")
    assert str(tmp_path / "a") in _node.present_state(paths)


def test_a_directory_behind_a_link_is_looked_into(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "cassandra").symlink_to(tmp_path / "data")
    assert _node.present_state([str(tmp_path / "cassandra")]) == []
    (tmp_path / "data" / "x").write_text("x")
    assert _node.present_state([str(tmp_path / "cassandra")]) == [str(tmp_path / "cassandra")]


def test_what_may_not_be_looked_at_never_passes_for_clean(monkeypatch, tmp_path):
    (tmp_path / "etcd").mkdir()

    def denied(path, onerror):
        onerror(PermissionError(13, "denied", path))
        return iter(())

    monkeypatch.setattr(_node.os, "walk", denied)
    with pytest.raises(PermissionError):
        _node.present_state([str(tmp_path / "etcd")])


@pytest.mark.parametrize("quote", ["", '"'])
def test_the_fingerprint_is_that_of_the_kubeconfig_s_authority(tmp_path, pem, quote):
    data = base64.b64encode(pem.encode()).decode()
    (tmp_path / "conf").write_text(f"    {quote}certificate-authority-data{quote}: {quote}{data}{quote}\n")
    assert _node.local_fingerprint(str(tmp_path / "conf"), "/nonexistent") == spki.fingerprint(pem)


def test_the_authority_may_be_a_file_or_the_usual_one(tmp_path, pem):
    (tmp_path / "ca.crt").write_text(pem)
    (tmp_path / "conf").write_text(f"    certificate-authority: {tmp_path}/ca.crt\n")
    assert _node.local_fingerprint(str(tmp_path / "conf"), "/nonexistent") == spki.fingerprint(pem)
    assert _node.local_fingerprint("/nonexistent", str(tmp_path / "ca.crt")) == spki.fingerprint(pem)
    assert _node.local_fingerprint("/nonexistent", "/nonexistent") is None


@pytest.mark.parametrize("data", ["AAAA=A", base64.b64encode(b"not a certificate").decode()])
def test_an_authority_that_cannot_be_decoded_is_an_error_and_not_none(tmp_path, data):
    (tmp_path / "conf").write_text(f"certificate-authority-data: {data}\n")
    with pytest.raises(Unreadable):
        _node.local_fingerprint(str(tmp_path / "conf"), "/nonexistent")


def test_a_marker_survives_and_is_private(tmp_path, monkeypatch):
    monkeypatch.setattr(_node, "OPENED_MARKER", str(tmp_path / "opened.json"))
    path = tmp_path / "kmsops" / "trial.json"
    _node.write_marker({"run_id": "r1", "host": "dr1"}, str(path))
    assert _node.read_marker(str(path)) == {"run_id": "r1", "host": "dr1", "schema": 1, "opened": False}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == ["trial.json"]
    (tmp_path / "opened.json").touch()
    assert _node.read_marker(str(path))["opened"] is True
    _node.remove_markers(str(path), str(path))
    assert _node.read_marker(str(path)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        json.dumps({"schema": 2, "run_id": "r", "host": "h"}),
        json.dumps({"schema": 1, "host": "h"}),
    ],
)
def test_a_marker_that_is_not_ours_is_an_error_and_not_none(tmp_path, text):
    (tmp_path / "trial.json").write_text(text)
    with pytest.raises(Unreadable):
        _node.read_marker(str(tmp_path / "trial.json"))


def test_connections():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert _node.try_connection("127.0.0.1", port, 2.0).outcome == "open"
    assert _node.try_connection("127.0.0.1", port, 2.0).outcome == "refused"
    assert _node.try_connection("name.invalid", 443, 2.0).outcome == "silent"


def test_names_that_do_not_resolve_lead_nowhere():
    assert _node.resolve("name.invalid") == []
    assert "127.0.0.1" in _node.resolve("localhost")
