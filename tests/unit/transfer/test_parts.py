# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""F06: a backup is complete only with its data, its configuration and its secrets: each missing in turn is noticed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from many_backups import CLUSTER, FINGERPRINT, Filler

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import parts
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Invalid, digest
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._info import info
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._parts import put, states
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import PruneRequest, prune
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import VerifyRequest, verify

BOTH = ["config", "secrets"]
PEM = b"-----BEGIN CMS-----\nMIIB\n-----END CMS-----\n"


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    made = Filler(tmp_path / "store", 4)
    for _index in range(4):
        made.publish(sealed=())
    return made.close()


def store_of(filler: Filler) -> ClusterStore:
    return ClusterStore.require(str(filler.path.parent))


def escrow(filler: Filler, part: str, content: bytes = PEM, write: bool = True) -> Any:
    source = filler.path.parent.parent / part
    source.write_bytes(content)
    return put(store_of(filler), part, str(source), FINGERPRINT, "run-1", write)


def listed(filler: Filler, require: list[str]) -> list[tuple[bool, list[str]]]:
    backups = info(str(filler.path.parent), "", "", False, require)["backups"]
    return [(item["complete"], [reason["code"] for reason in item["reasons"]]) for item in backups]


def verified(filler: Filler, require: list[str]) -> list[str]:
    reasons = verify(store_of(filler), VerifyRequest(require=require, newest=True)).reasons
    assert not any(reason.hard for reason in reasons)
    return [reason.code for reason in reasons]


def damage_document(directory: Path) -> None:
    (directory / "part.json").write_bytes(b"{}")


def flip(directory: Path) -> None:
    (directory / "bundle.cms").write_bytes(PEM.replace(b"MIIB", b"MIIC"))


@pytest.mark.parametrize("part", BOTH)
@pytest.mark.parametrize(
    ("harm", "seen_when"),
    [
        (shutil.rmtree, "listed"),
        (lambda directory: (directory / "bundle.cms").unlink(), "listed"),
        (lambda directory: (directory / "part.json").unlink(), "listed"),
        (lambda directory: (directory / "bundle.cms").write_bytes(PEM[:-1]), "listed"),
        (damage_document, "listed"),
        (flip, "verified"),
    ],
)
def test_f06_each_part_missing_in_turn_is_incomplete(
    filler: Filler, part: str, harm: Callable[[Path], None], seen_when: str
) -> None:
    assert verified(filler, []) == [] and verified(filler, BOTH) == ["INCOMPLETE", "INCOMPLETE"]
    for name in BOTH:
        escrow(filler, name)
    assert listed(filler, BOTH) == [(True, [])] * 4 and verified(filler, BOTH) == []
    (directory,) = (filler.path / part).iterdir()
    harm(directory)
    assert verified(filler, BOTH) == ["INCOMPLETE"] and verified(filler, [one for one in BOTH if one != part]) == []
    if seen_when == "listed":
        assert listed(filler, BOTH) == [(False, ["INCOMPLETE"])] * 4
        assert "  incomplete  " in info(str(filler.path.parent), "", "", False, BOTH)["table"][1]
    assert listed(filler, []) == [(True, [])] * 4


def test_f06_the_data_is_a_part_too(filler: Filler) -> None:
    (filler.backups / filler.ids[0] / "manifest.json").unlink()
    first = info(str(filler.path.parent), "", "")["backups"][0]
    assert first["complete"] is False and first["parts"]["data"] == "failed"


def test_f20_what_is_incomplete_does_not_count(filler: Filler) -> None:
    request = PruneRequest(Policy(keep=1, max_copies=1), need=0, require=BOTH)
    escrow(filler, "config")
    assert prune(store_of(filler), request, False).removed == []
    escrow(filler, "secrets")
    assert prune(store_of(filler), request, False).removed == filler.ids[:3]


def test_the_same_again_is_no_news_and_another_one_counts(filler: Filler) -> None:
    before, predicted = escrow(filler, "config", write=False)
    assert before is None and states(store_of(filler))[FINGERPRINT]["config"] == "missing"
    _before, first = escrow(filler, "config")
    assert first.sha256 == predicted.sha256 and states(store_of(filler), True)[FINGERPRINT]["config"] == "ok"
    before, again = escrow(filler, "config")
    assert before == again == first
    _before, second = escrow(filler, "config", PEM + b"\n")
    assert second.id > first.id
    shutil.rmtree(filler.path / "config" / first.id)
    assert states(store_of(filler), True)[FINGERPRINT] == {"config": "ok", "secrets": "missing"}
    flip(filler.path / "config" / second.id)
    _before, third = escrow(filler, "config", PEM + b"\n")
    assert third.id > second.id and states(store_of(filler), True)[FINGERPRINT]["config"] == "ok"


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "SOURCE_EMPTY"), (b"cluster:\n", "NOT_ENCRYPTED"), (b"0" * 64, "NOT_ENCRYPTED")]
)
def test_what_is_not_encrypted_does_not_come_in(filler: Filler, content: bytes, code: str) -> None:
    with pytest.raises(DsmError) as caught:
        escrow(filler, "secrets", content)
    assert caught.value.code == code and caught.value.remedy
    assert not (filler.path / "secrets").exists()


def test_other_refusals(filler: Filler, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate((64 << 20) + 1)
    for source, fingerprint, code in (
        (str(tmp_path / "absent"), FINGERPRINT, "SOURCE_UNREADABLE"),
        (str(tmp_path), FINGERPRINT, "SOURCE_UNREADABLE"),
        (str(large), FINGERPRINT, "TOO_LARGE"),
    ):
        with pytest.raises(DsmError) as caught:
            put(store_of(filler), "config", source, fingerprint, "", True)
        assert caught.value.code == code
    pem = tmp_path / "pem"
    pem.write_bytes(PEM)
    with pytest.raises(DsmError) as caught:
        put(store_of(filler), "config", str(pem), "ab" * 32, "", True)
    assert caught.value.code == "UNKNOWN_GENERATION"


def test_a_file_where_the_bundles_belong_holds_none_and_is_in_the_way(filler: Filler) -> None:
    (filler.path / "config").write_bytes(b"")
    assert states(store_of(filler), True)[FINGERPRINT] == {"config": "missing", "secrets": "missing"}
    assert all(not complete for complete, _codes in listed(filler, ["config"]))
    assert verified(filler, ["config"]) == ["INCOMPLETE"]
    with pytest.raises(DsmError) as caught:
        escrow(filler, "config")
    assert caught.value.code == "NOT_A_DIRECTORY" and f"{filler.path / 'config'} is no directory" in str(caught.value)
    escrow(filler, "secrets")
    assert states(store_of(filler), True)[FINGERPRINT]["secrets"] == "ok"


@pytest.mark.parametrize("form", ["PEM", "DER"])
def test_what_openssl_makes_is_taken(tmp_path: Path, form: str) -> None:
    key, certificate, out = tmp_path / "key", tmp_path / "crt", tmp_path / "out"
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=escrow", "-keyout", str(key)]
    subprocess.run([*new, "-out", str(certificate)], check=True, capture_output=True)
    encrypt = ["openssl", "cms", "-encrypt", "-binary", "-aes256", "-outform", form, "-out", str(out), str(certificate)]
    subprocess.run(encrypt, input=b"cluster:\n", check=True, capture_output=True)
    assert parts.is_encrypted(out.read_bytes()[:4096])


def test_documents(filler: Filler) -> None:
    bundle = parts.Bundle(
        CLUSTER, "config", "00000001-20261122T000000Z", FINGERPRINT, "2026-11-22T00:00:00Z", "r", 5, "ab" * 32
    )
    data = parts.dump(bundle)
    wanted: dict[str, str] = {"cluster_id": CLUSTER, "part": "config", "bundle_id": bundle.id}
    assert parts.parse(data, **wanted) == bundle
    smallest = parts.Bundle(**{**bundle.__dict__, "bytes": 1})
    assert parts.parse(parts.dump(smallest), **wanted) == smallest

    def resealed(**changes: Any) -> bytes:
        value = {**json.loads(data), **changes}
        value["checksum"] = digest({name: item for name, item in value.items() if name != "checksum"})
        return json.dumps(value).encode()

    for bad, code in (
        (b"", "EMPTY"),
        (data.replace(b'"schema": 1', b'"schema": 2'), "UNKNOWN_SCHEMA"),
        (data.replace(b"dsm/part", b"dsm/prat"), "UNKNOWN_SCHEMA"),
        (data.replace(b'"bytes": 5', b'"bytes": 6'), "CHECKSUM"),
        (resealed(part="secrets"), "FOREIGN"),
        (resealed(bytes=0), "WRONG_VALUE"),
        (resealed(sha256="x"), "WRONG_VALUE"),
        (resealed(stored_at="x"), "WRONG_VALUE"),
        (resealed(more=1), "UNKNOWN_KEY"),
        (resealed(schema=True), "UNKNOWN_SCHEMA"),
        (json.dumps({name: item for name, item in json.loads(data).items() if name != "id"}).encode(), "MISSING_KEY"),
    ):
        with pytest.raises(Invalid) as caught:
            parts.parse(bad, **wanted)
        assert code in [problem.code for problem in caught.value.problems], bad
    other = parts.Bundle(**{**bundle.__dict__, "id": "00000002-20261122T000000Z", "fingerprint": "cd" * 32})
    assert parts.newest([bundle, other], FINGERPRINT) == bundle and parts.newest([], FINGERPRINT) is None


def test_f06_the_data_that_failed_are_a_part_that_is_missing(filler: Filler) -> None:
    shutil.rmtree(filler.backups / filler.ids[0] / "data")
    verify(store_of(filler), VerifyRequest())
    said = info(str(filler.path.parent), "", "")
    told = said["backups"][0]
    assert (told["verdict"], told["complete"], told["parts"]["data"]) == ("failed", False, "failed")
    assert " incomplete " not in said["table"][1]


def test_f06_a_bundle_of_the_same_size_with_other_bytes_is_missing_for_all(filler: Filler) -> None:
    escrow(filler, "config")
    (stored,) = (filler.path / "config").glob("*/bundle.cms")
    stored.write_bytes(stored.read_bytes()[::-1])
    assert verified(filler, ["config"]) and not any(complete for complete, _codes in listed(filler, ["config"]))
    plan = prune(store_of(filler), PruneRequest(Policy(keep=1), run_id="p", require=["config"]), True).plan
    assert plan and plan.verified == 0
