# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use of the modules on DSM hosts: a code, every reason at once, a remedy, and not a byte that changed.

Which line of the list is held by which test stands in test_wrong_use_list.py. What ships is in tests/integration.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from ansible.module_utils import basic
from dsm_api import HOST, Site
from fake_node import nodes_json, witness
from module_run import Answer
from worlds import (
    MEMBERS,
    PRODUCTION,
    BackupConfig,
    BackupRun,
    ClusterCreate,
    ClusterJoin,
    ClusterRemove,
    ClusterReset,
    DatacenterLabel,
    JoinToken,
    Restore,
    World,
)

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import OperationResult

DASH = "\u2013-force"
ARTICLES_TOKEN = "fc853c.6fd193ba34870ddfGO"
REFUSED = (1, "", "The connection to the server 203.0.113.11:6443 was refused - did you specify the right host?\n")
NO_QUORUM = (1, '{"kind": "List", "items": []}', "Error from server: etcdserver: request timed out\n")
GUARDS = [ClusterCreate, ClusterRemove, ClusterReset, Restore]

Make = Callable[[type[World]], Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _self, _text: None)
    worlds: list[World] = []

    def build(kind: type[World]) -> World:
        worlds.append(kind(tmp_path, monkeypatch))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


def refused(world: World, expected: list[str], error_code: str = "", **options: Any) -> Answer:
    """Refused for exactly these reasons, in check mode as well, and nothing that could be observed has changed."""
    planned = world.call(check=True, **options)
    before = world.observe()
    answer = world.call(**options)
    for one in (planned, answer):
        result = one.result
        assert one.failed, one.text
        assert sorted(reason["code"] for reason in result["reasons"]) == sorted(expected), result["msg"]
        assert result["error_code"] == error_code if error_code else result["error_code"] in expected
        assert all(reason["message"] and reason["remedy"] for reason in result["reasons"])
        assert result["remedy"]
        assert len(expected) == 1 or all(code in result["msg"] for code in expected)
        assert (result["changed"], result["actions"]) == (False, [])
        assert "Traceback" not in one.text
    assert world.observe() == before
    assert world.operations.started == []
    return answer


def ended(rc: int | None, running: bool = False) -> OperationResult:
    return OperationResult(rc, "", "2026-11-22T01:00:00Z", True, 1.0, running)


# -- joining -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token",
    [ARTICLES_TOKEN, "FC853C.6FD193BA34870DDF", "fc853c6fd193ba34870ddf", "fc853c.6fd193ba34870ddf\n", "fc853c.é"],
)
def test_wrong_use_malformed_token(make: Make, token: str) -> None:
    answer = refused(make(ClusterJoin), ["TOKEN_MALFORMED"], token=token)
    assert token.strip() not in answer.text
    assert "join_token" in answer.result["remedy"]


def test_wrong_use_typographic_dash(make: Make) -> None:
    """It stands in the vendor's own article. Check mode sees it too, and no marker is touched on the way."""
    world = make(ClusterJoin)
    (world.state / "trial.json").write_text("{}")
    answer = refused(world, ["ARGV_NOT_ASCII", "ARGV_NOT_ASCII"], extra_args=[DASH, "--ok", "\u201cx\u201d"])
    assert "\\u2013" in answer.result["msg"] and "copied" in answer.result["remedy"]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (ClusterReset, {"extra_args": [DASH]}, ["ARGV_NOT_ASCII"]),
        (ClusterRemove, {"extra_args": [DASH]}, ["ARGV_NOT_ASCII"]),
        (ClusterCreate, {"self_address": "\u2013203.0.113.11/24"}, ["SELF_MALFORMED"]),
        (BackupConfig, {"apply_argv": ["apply", "\u2013config", "{config}"]}, ["ARGV_NOT_ASCII"]),
        (BackupRun, {"argv": ["backup", "\u2013now"]}, ["ARGV_NOT_ASCII"]),
        (Restore, {"steps": [{"name": "load", "argv": ["load", "\u2013from", "{archive}"]}]}, ["ARGV_NOT_ASCII"]),
    ],
)
def test_wrong_use_typographic_dash_anywhere(
    make: Make, kind: type[World], options: dict[str, Any], expected: list[str]
) -> None:
    refused(make(kind), expected, **options)


def test_wrong_use_peer_unreachable(make: Make) -> None:
    answer = refused(make(ClusterJoin), ["PEER_UNREACHABLE"], peer="198.51.100.99")
    assert "6443" in answer.result["msg"]


def test_wrong_use_peer_not_a_member(make: Make) -> None:
    world = make(ClusterJoin)
    members = [*MEMBERS, *MEMBERS.values()]
    answer = refused(world, ["PEER_NOT_MEMBER", "PEER_UNREACHABLE"], peer="203.0.113.50", members=members)
    assert "dc2-n1" in answer.result["msg"]
    assert world.call(check=True, members=members).result["state"] == "member"
    assert world.call(check=True, members=["198.51.100.1"], accept=["PEER_NOT_MEMBER"]).result["changed"] is True


@pytest.mark.parametrize("peer", ["203.0.113.11", "dr1", "localhost", "127.0.0.1"])
def test_wrong_use_peer_is_self(make: Make, peer: str) -> None:
    world = make(ClusterJoin)
    assert "member" in refused(world, ["PEER_IS_SELF"], peer=peer).result["remedy"]


def test_wrong_use_host_joined_to_another_cluster(make: Make) -> None:
    world = make(ClusterJoin)
    world.effect("", [])
    world.nodes.pop("dc1-n1")
    answer = refused(world, ["FOREIGN_MEMBER"])
    assert "192.0.2.11" in answer.result["msg"] and "reset" in answer.result["remedy"]


def test_wrong_use_leftovers_of_another_cluster(make: Make) -> None:
    world = make(ClusterJoin)
    (world.root / "etc" / "old").write_text("x")
    assert "cluster_reset" in refused(world, ["LEFTOVER"]).result["remedy"]
    (world.root / "etc" / "admin.conf").write_text(world.conf)
    world.answers[("kubectl", "get", "nodes")] = NO_QUORUM
    refused(world, ["MEMBERSHIP_UNKNOWN"])


def test_wrong_use_version_mismatch_of_a_join(make: Make) -> None:
    world = make(ClusterJoin)
    answer = refused(world, ["VERSION"], cluster_version="5.6.2919")
    assert "5.6.2919" in answer.result["msg"] and answer.result["reasons"][0]["hard"] is False
    too_old = {"own_version": "3.14.2", "cluster_version": "3.10.16"}
    refused(world, ["DSM_TOO_OLD", "DSM_TOO_OLD", "VERSION"], accept=["VERSION_", "DSM_TOO_OLD"], **too_old)


def test_wrong_use_token_expired_between_create_and_join(make: Make) -> None:
    """What this host's clock can tell is told before anything begins; else the vendor's command decides."""
    world = make(ClusterJoin)
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=90)
    answer = refused(world, ["TOKEN_EXPIRED"], token_expires=past.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert "expired 9" in answer.result["msg"] and "join_token" in answer.result["remedy"]
    refused(world, ["BAD_ARGUMENTS"], token_expires="soon")
    world.operations.effect = None
    world.operations.ends["join"] = 1
    failed = world.call(token_expires="2099-01-01T00:00:00Z").result
    assert (failed["error_code"], failed["reasons"][0]["code"]) == ("JOIN_FAILED", "JOIN_FAILED")
    assert "expire" in failed["remedy"] and failed["details"]["rc"] == 1


def test_wrong_use_of_a_join_is_told_all_at_once(make: Make) -> None:
    everything = {"token": "x", "peer": "\u2013peer", "cluster_version": "5.6.1", "extra_args": [DASH]}
    expected = ["ARGV_NOT_ASCII", "PEER_MALFORMED", "TOKEN_MALFORMED", "VERSION"]
    world = make(ClusterJoin)
    world.operations.records["reset"] = ended(None, running=True)
    refused(world, [*expected, "OPERATION_CONFLICT"], **everything)


def test_wrong_use_token_of_other_people(make: Make) -> None:
    world = make(JoinToken)
    world.add(description="by hand")
    answer = refused(world, ["TOKEN_NOT_OURS"], state="absent", token=JoinToken.token)
    assert JoinToken.token not in answer.text and len(world.tokens) == 1


# -- who is meant ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GUARDS)
def test_wrong_use_wrong_host_behind_an_alias(make: Make, kind: type[World]) -> None:
    """Another name, other addresses and another serial number: all three are told, whichever module it is."""
    identity = {"confirm": "dr7", "expected_addresses": ["198.51.100.77"], "expected_serial": "SN-7"}
    expected = ["ADDRESS_MISMATCH", "CONFIRM_MISMATCH", "SERIAL_MISMATCH"]
    answer = refused(make(kind), expected, accept=expected, **identity)
    assert "inventory" in answer.result["remedy"]


@pytest.mark.parametrize("kind", GUARDS)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"confirm": "dr7"}, "CONFIRM_MISMATCH"),
        ({"confirm": ""}, "CONFIRM_MISMATCH"),
        ({"expected_addresses": ["198.51.100.77"]}, "ADDRESS_MISMATCH"),
        ({"expected_serial": "SN-7"}, "SERIAL_MISMATCH"),
    ],
)
def test_wrong_use_confirm_names_another_host(
    make: Make, kind: type[World], change: dict[str, Any], expected: str
) -> None:
    refused(make(kind), [expected], **change)


@pytest.mark.parametrize("kind", GUARDS)
def test_wrong_use_confirm_missing(make: Make, kind: type[World]) -> None:
    answer = refused(make(kind), ["BAD_ARGUMENT"], "BAD_ARGUMENTS", confirm=None)
    assert "confirm" in answer.result["msg"] and "hostname" in answer.result["remedy"]


@pytest.mark.parametrize("kind", GUARDS)
def test_wrong_use_host_that_is_another_one_when_it_comes_to_acting(
    make: Make, kind: type[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 5: who this is, is read again right before the harm, after all that took its time."""
    world = make(kind)
    once = [world.here]
    monkeypatch.setattr(_module.socket, "gethostname", lambda: once.pop() if once else "another")
    before = world.observe()
    result = world.call().result
    assert (result["error_code"], [reason["code"] for reason in result["reasons"]]) == (
        "WRONG_HOST",
        ["CONFIRM_MISMATCH"],
    )
    assert (result["changed"], result["actions"], world.operations.started) == (False, [], [])
    assert world.observe() == before


@pytest.mark.parametrize("kind", GUARDS)
def test_wrong_use_without_testimony(make: Make, kind: type[World]) -> None:
    world = make(kind)
    if kind is Restore:
        world.set_scene = lambda: None
    refused(world, ["TESTIMONY_MISSING"], testimony=None)


@pytest.mark.parametrize(
    ("kind", "role", "expected"),
    [
        (ClusterCreate, "production", "ROLE_FORBIDS"),
        (ClusterCreate, "retired", "ROLE_FORBIDS"),
        (ClusterReset, "production", "ROLE_FORBIDS"),
        (ClusterReset, "retired", "ROLE_FORBIDS"),
        (Restore, "production", "NOT_A_DR_HOST"),
        (Restore, "spare", "NOT_A_DR_HOST"),
    ],
)
def test_wrong_use_host_that_is_not_declared_for_it(make: Make, kind: type[World], role: str, expected: str) -> None:
    answer = refused(make(kind), [expected], host_role=role, accept=[expected])
    assert "inventory" in answer.result["remedy"]


# -- reset of a member -------------------------------------------------------------------------------------------------


def removed_host(make: Make) -> Any:
    """A DR host that production removed: state left over, its own apiserver refuses, two members testify."""
    world = make(ClusterReset)
    (world.state / "trial.json").unlink()
    world.answers[("kubectl", "get", "nodes")] = REFUSED
    heard = world.testimony(*((name, witness(name, world.fingerprint, list(MEMBERS))) for name in ("dc1-n1", "dc2-n1")))
    heard["ledger"]["folded"]["production_fingerprint"] = world.fingerprint
    heard["ledger"]["folded"]["joins"] = {"dr1": {"host_id": "id-of-dr1"}}
    world.params.update(because="removed", testimony=heard)
    return world


def test_wrong_use_reset_of_a_member_its_own_control_plane_lists_it(make: Make) -> None:
    world = removed_host(make)
    world.answers[("kubectl", "get", "nodes")] = lambda _argv: nodes_json({**MEMBERS, "dr1": "203.0.113.11"})
    answer = refused(world, ["STILL_MEMBER"], accept=["STILL_MEMBER"])
    assert "survivor" in answer.result["remedy"]


def test_wrong_use_reset_of_a_member_its_own_service_answers(make: Make) -> None:
    """A 204 on its own address counts as in, whatever its control plane says."""
    world = removed_host(make)
    directory = world.root / "site"
    directory.mkdir()
    site = Site(directory).open()
    try:
        api = {"api_address": "127.0.0.1", "api_port": site.port, "api_host": HOST, "ca_path": site.ca_path}
        refused(world, ["STILL_MEMBER"], **api)
    finally:
        site.close()


def test_wrong_use_reset_of_a_member_its_control_plane_is_silent(make: Make) -> None:
    world = removed_host(make)
    world.answers[("kubectl", "get", "nodes")] = NO_QUORUM
    refused(world, ["MEMBERSHIP_UNKNOWN"])


@pytest.mark.parametrize("liar", ["dc1-n1", "dc2-n1"])
@pytest.mark.parametrize(
    "entry",
    [{"name": "dr1"}, {"name": "x", "addresses": ["203.0.113.11/24"]}, {"name": "ring", "host_id": "id-of-dr1"}],
    ids=["by name", "by address", "by host id"],
)
def test_wrong_use_reset_of_a_member_one_witness_lists_it(make: Make, liar: str, entry: dict[str, Any]) -> None:
    world = removed_host(make)
    nodes = world.params["testimony"]["witnesses"][liar]["cluster"]["nodes"]
    nodes.append({"addresses": [], "host_id": None, **entry})
    answer = refused(world, ["STILL_LISTED"])
    assert liar in answer.result["msg"]


def test_wrong_use_reset_of_a_member_too_few_are_heard(make: Make) -> None:
    world = removed_host(make)
    world.params["testimony"]["witnesses"].pop("dc2-n1")
    answer = refused(world, ["TOO_FEW_WITNESSES"], accept=["TOO_FEW_WITNESSES"])
    assert "dc2-n1" in answer.result["msg"] and "dc3-n1" in answer.result["msg"]


def test_wrong_use_reset_of_a_member_everything_speaks_against_it(make: Make) -> None:
    world = removed_host(make)
    world.answers[("kubectl", "get", "nodes")] = lambda _argv: nodes_json({**MEMBERS, "dr1": "203.0.113.11"})
    world.params["testimony"]["witnesses"].pop("dc2-n1")
    nodes = world.params["testimony"]["witnesses"]["dc1-n1"]["cluster"]["nodes"]
    nodes.append({"name": "dr1", "addresses": [], "host_id": None})
    expected = ["ARGV_NOT_ASCII", "ROLE_FORBIDS", "STILL_LISTED", "STILL_MEMBER", "TOO_FEW_WITNESSES"]
    refused(world, expected, host_role="production", extra_args=[DASH], accept=expected)


@pytest.mark.parametrize("because", ["removed", "own_trial", "retired"])
def test_wrong_use_reset_of_a_member_whatever_the_cause(make: Make, because: str) -> None:
    world = removed_host(make)
    world.answers[("kubectl", "get", "nodes")] = lambda _argv: nodes_json({**MEMBERS, "dr1": "203.0.113.11"})
    before = world.observe()
    everything = ["LEDGER_MISSING", "STILL_MEMBER", "TOO_FEW_WITNESSES", "NOT_OUR_TRIAL", "ROLE_FORBIDS"]
    answer = world.call(because=because, approval={"by": "a", "reason": "b"}, accept=everything, trial_hosts=["dr1"])
    assert any(reason["hard"] for reason in answer.result["reasons"])
    assert answer.result["remedy"] and answer.result["changed"] is False and world.observe() == before


# -- creating ----------------------------------------------------------------------------------------------------------


def test_wrong_use_self_without_mask(make: Make) -> None:
    answer = refused(make(ClusterCreate), ["SELF_WITHOUT_MASK"], self_address="203.0.113.11")
    assert "203.0.113.11" in answer.result["msg"] and "/24" in answer.result["remedy"]


def test_wrong_use_self_of_another_host(make: Make) -> None:
    refused(make(ClusterCreate), ["SELF_NOT_HERE"], self_address="203.0.113.12/24")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cluster:\n\tname: acme\n", 2),
        ("a: 1\nb: 2\na: 3\n", 3),
        ("backup:\n  cron_schedule: 1\n  cron_schedule: 2\n", 3),
    ],
    ids=["tab", "key twice", "key twice in the block"],
)
def test_wrong_use_tabs_or_duplicate_keys_in_config(make: Make, text: str, line: int) -> None:
    world = make(ClusterCreate)
    Path(world.params["config"]).write_text(text)
    assert f"line {line}:" in refused(world, ["CONFIG_INVALID"]).result["msg"]


@pytest.mark.parametrize("text", ["cluster:\n\tname: acme\n", "a: 1\na: 2\n", "backup:\n  scp:\n  scp:\n"])
def test_wrong_use_tabs_or_duplicate_keys_in_config_to_be_edited(make: Make, text: str) -> None:
    world = make(BackupConfig)
    world.path.write_text(text)
    assert "line " in refused(world, ["CONFIG_UNSAFE"]).result["msg"]


def test_wrong_use_missing_config(make: Make) -> None:
    answer = refused(make(ClusterCreate), ["CONFIG_MISSING"], config="/nonexistent/config.yaml")
    assert "escrow" in answer.result["remedy"]


def test_wrong_use_missing_config_to_be_edited(make: Make) -> None:
    world = make(BackupConfig)
    world.path.unlink()
    refused(world, ["CONFIG_MISSING"])
    world.path.write_bytes(b"\xff\xfe\x00")
    refused(world, ["CONFIG_UNREADABLE"])


def test_wrong_use_of_create_is_told_all_at_once(make: Make) -> None:
    world = make(ClusterCreate)
    (world.root / "etc" / "old").write_text("x")
    world.params["testimony"] = world.testimony(("dc1-n1", witness("dc1-n1", PRODUCTION, [*MEMBERS, "dr1"])))
    wrong = {
        "confirm": "spare1",
        "host_role": "production",
        "self_address": "203.0.113.11",
        "own_version": "3.14.1",
        "config": "/nonexistent/config.yaml",
        "isolation": {"service_address": "203.0.113.11", "production_endpoints": [{"address": "127.0.0.1"}]},
    }
    expected = [
        "CONFIG_MISSING", "CONFIRM_MISMATCH", "DATA_PRESENT", "DSM_TOO_OLD", "NOT_ISOLATED", "ROLE_FORBIDS",
        "SELF_WITHOUT_MASK", "SERVICE_LEADS_HERE", "STILL_LISTED",
    ]  # fmt: skip
    refused(world, expected, accept=expected, **wrong)


def test_wrong_use_create_on_a_member(make: Make) -> None:
    world = make(ClusterCreate)
    world.effect("", [])
    refused(world, ["ALREADY_MEMBER"], accept=["ALREADY_MEMBER"])


# -- the configuration of backups --------------------------------------------------------------------------------------


def test_wrong_use_backup_without_audit_backup(make: Make) -> None:
    world = make(BackupConfig)
    answer = refused(world, ["AUDIT_LOG_LOST"], backup={**BackupConfig.backup, "exclude_auditlog": True})
    assert "audit_backup" in answer.result["remedy"]
    both = {"backup": {**BackupConfig.backup, "exclude_auditlog": True}, "audit_backup": BackupConfig.backup}
    assert not world.call(check=True, **both).failed


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_wrong_use_password_in_a_world_readable_file(make: Make, mode: int) -> None:
    world = make(BackupConfig)
    world.call()
    world.path.chmod(mode)
    world.operations.started.clear()
    answer = refused(world, ["PASSWORD_EXPOSED"])
    assert BackupConfig.password not in answer.text and "Change that password" in answer.result["remedy"]


# -- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "option"), [(BackupConfig, "apply_argv"), (BackupRun, "argv"), (Restore, "steps")], ids=str
)
def test_wrong_use_missing_template(make: Make, kind: type[World], option: str) -> None:
    answer = refused(make(kind), ["TEMPLATE_MISSING"], **{option: []})
    assert "Backup and Restore" in answer.result["remedy"]


def test_wrong_use_missing_template_beside_other_reasons(make: Make) -> None:
    world = make(BackupConfig)
    bad = {"backup": {**BackupConfig.backup, "cron_schedule": "never"}, "apply_argv": ["apply", "{nothing}"]}
    refused(world, ["CRON_INVALID", "TEMPLATE_PLACEHOLDER"], **bad)


def test_wrong_use_of_restore_is_told_all_at_once(make: Make) -> None:
    world = make(Restore)
    world.nodes = {"dr1": "203.0.113.11", "spare1": "203.0.113.12"}
    world.marker = dict(world.marker, host="dr2")
    world.witnesses = {"dc1-n1": witness("dc1-n1", world.fingerprint, ["dc1-n1"])}
    wrong = {
        "confirm": "dr7",
        "host_role": "production",
        "steps": [],
        "isolation": {"service_address": "203.0.113.11", "production_endpoints": [{"address": "127.0.0.1"}]},
    }
    expected = [
        "CONFIRM_MISMATCH", "FOREIGN_CLUSTER", "IS_PRODUCTION", "NOT_A_DR_HOST", "NOT_ISOLATED", "NOT_SINGLE_NODE",
        "SERVICE_LEADS_HERE", "TEMPLATE_MISSING",
    ]  # fmt: skip
    refused(world, expected, accept=expected, **wrong)


# -- what is to be restored --------------------------------------------------------------------------------------------


def test_wrong_use_empty_backup_is_not_restored(make: Make) -> None:
    world = make(Restore)
    world.backup.write_bytes(b"")
    refused(world, ["EMPTY"], "NO_CANDIDATE")
    world.backup.unlink()
    refused(world, ["NOT_STAGED"], "NO_CANDIDATE")


@pytest.mark.parametrize("damage", ["truncated", "growing", "foreign"])
def test_wrong_use_backup_that_is_not_what_was_verified_is_not_restored(
    make: Make, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(Restore)
    good = world.backup.read_bytes()
    candidate = world.candidate()
    monkeypatch.setattr(world, "candidate", lambda: candidate)
    bad = {"truncated": good[:-1], "growing": good + b"x", "foreign": good[::-1]}[damage]
    world.backup.write_bytes(bad)
    assert candidate["sha256"] != hashlib.sha256(bad).hexdigest()
    refused(world, ["HASH"], "NO_CANDIDATE", accept=["HASH"])


def test_wrong_use_foreign_backup_is_not_restored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(Restore)
    candidate = world.candidate(cluster_id="0123456789abcdef", version="5.6.2919", verified=False)
    monkeypatch.setattr(world, "candidate", lambda: candidate)
    refused(world, ["FOREIGN_BACKUP", "UNVERIFIED", "VERSION"], "NO_CANDIDATE")


def test_wrong_use_version_mismatch_of_a_restore(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(Restore)
    candidate = world.candidate(version="5.6.2919")
    monkeypatch.setattr(world, "candidate", lambda: candidate)
    answer = refused(world, ["VERSION"], "NO_CANDIDATE")
    assert "5.6.2919" in answer.result["msg"] and "5.4.2031" in answer.result["msg"]


def test_wrong_use_no_candidate_at_all(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make(Restore)
    monkeypatch.setattr(world, "set_scene", lambda: None)
    refused(world, ["NO_CANDIDATE"], candidates=[])


# -- removing and labelling --------------------------------------------------------------------------------------------


def test_wrong_use_of_remove_is_told_all_at_once(make: Make) -> None:
    world = make(ClusterRemove)
    wrong = {"node": "dc1-n1", "confirm": "dr1", "also_dead": ["dc2-n1"], "minimum_size": 9, "extra_args": [DASH]}
    expected = ["ALSO_DEAD_ALIVE", "ARGV_NOT_ASCII", "BELOW_MINIMUM", "CONFIRM_MISMATCH", "SELF_REMOVAL"]
    refused(world, expected, **wrong)


def test_wrong_use_labels(make: Make) -> None:
    world = make(DatacenterLabel)
    labels = {"dc1-n1": "dc 1", "dc2-n1": "DC1", "nobody": "dc1"}
    refused(world, ["NAME_INVALID", "NAME_SPELLING", "NODE_UNKNOWN", "PARTIAL_LABELS"], labels=labels, accept=[])


# -- the tools of the controller ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ClusterJoin, ClusterReset, Restore, BackupConfig])
def test_wrong_use_unsupported_ansible_core(make: Make, kind: type[World]) -> None:
    """Ansible itself only warns. Nothing is done by a release that nobody tried this with."""
    answer = refused(make(kind), ["ANSIBLE_TOO_OLD"], _ansible_version="2.15.13")
    assert "2.16" in answer.result["msg"] and "2.15.13" in answer.result["msg"]


@pytest.mark.parametrize("version", ["2.16.0", "2.19.4", "2.20.0b1", "3.0", "0.0", "odd"])
def test_wrong_use_supported_ansible_core_is_not_refused(make: Make, version: str) -> None:
    assert not make(ClusterJoin).call(check=True, _ansible_version=version).failed


def test_wrong_use_not_root(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task without become on a DSM host: the state cannot be looked at, so nobody can say that it is clean."""
    world = make(ClusterJoin)
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _node

    monkeypatch.setattr(_node.os, "walk", lambda path, onerror: [onerror(PermissionError(13, "denied", path))])
    answer = world.call()
    result = answer.result
    assert (result["error_code"], result["changed"], result["actions"]) == ("NOT_PERMITTED", False, [])
    assert "become" in result["remedy"] and result["reasons"] and world.operations.started == []
    assert json.dumps(result).count("Traceback") == 0
