# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Join, remove, reset, create, tokens, labels and waiting: every guard by itself, and every way that it can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils import basic
from fake_node import commands, nodes_json, nodetool_status, witness
from module_run import FakeOperations
from worlds import (
    DR,
    MEMBERS,
    PRODUCTION,
    ClusterCreate,
    ClusterInfo,
    ClusterJoin,
    ClusterRemove,
    ClusterReset,
    ClusterWaitFor,
    DatacenterLabel,
    JoinToken,
)

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _joining
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.membership import Probe
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import OperationResult

REFUSED = (
    1,
    "",
    "The connection to the server 203.0.113.11:6443 was refused - did you specify the right host or port?\n",
)
UNAUTHORIZED = (1, '{"kind": "List", "items": []}', "error: You must be logged in to the server (Unauthorized)\n")
NO_QUORUM = (1, '{"kind": "List", "items": []}', "Error from server: etcdserver: request timed out\n")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes one world; time passes without waiting in it."""
    warned = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _self, text: warned.append(text))
    clock = [0.0]
    monkeypatch.setattr(_cluster.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(_cluster.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + max(seconds, 0.1)))
    worlds = []

    def build(kind):
        worlds.append(kind(tmp_path, monkeypatch))
        worlds[-1].warned = warned
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


def codes(answer):
    assert answer.failed, answer.text
    return sorted(one["code"] for one in answer.result["reasons"])


def ended(rc, tail="", **changes):
    values = {"started_at": "2026-11-22T01:00:00Z", "attached": True, "seconds": 1.0, "running": False}
    return OperationResult(rc, tail, **dict(values, **changes))


class Lasting(FakeOperations):
    """Operations that go on running after they were started, and say ``words`` meanwhile."""

    words = ""

    def start_or_attach(self, name, argv, **options):
        before = self.records.get(name)
        result = super().start_or_attach(name, argv, **options)
        if not (before and before.running and options.get("wait", True)):
            self.records[name] = result = ended(None, self.words, running=True, attached=bool(before))
        return result


# -- cluster_info ------------------------------------------------------------------------------------------------------


def test_info_of_a_member(make):
    result = make(ClusterInfo).call().result
    assert (result["membership"], result["changed"], result["marker"]) == ("member", False, None)
    assert result["cluster"]["quorum"]["global"] == {"size": 3, "needed": 2, "up": 3, "met": True}
    assert result["cluster"]["fingerprint"] == result["fingerprint"]
    assert result["cluster"]["uid"] == "uid-dc1-n1"
    assert [spot["code"] for spot in result["cluster"]["thin_spots"]] == ["UNLABELLED"]


def test_info_of_a_clean_host_is_no_failure(make):
    world = make(ClusterJoin)
    world.module = "cluster_info"
    world.params = {key: world.params[key] for key in ("kubeconfig", "state_paths")}
    result = world.call().result
    assert (result["membership"], result["cluster"], result["fingerprint"]) == ("none", None, None)


@pytest.mark.parametrize(
    ("failure", "membership"),
    [(REFUSED, "leftover"), (UNAUTHORIZED, "leftover"), (NO_QUORUM, "unknown"), ("[]", "unknown"), ("", "unknown")],
)
def test_info_where_the_control_plane_does_not_answer(make, failure, membership):
    world = make(ClusterInfo)
    world.answers[("kubectl", "get", "nodes")] = failure
    result = world.call().result
    assert (result["membership"], result["cluster"]) == (membership, None)


def test_info_of_a_host_that_its_old_cluster_no_longer_lists(make):
    world = make(ClusterInfo)
    del world.nodes["dc1-n1"]
    result = world.call().result
    assert result["membership"] == "leftover"


def test_info_without_a_database_pod_says_that_the_ring_is_unknown(make):
    world = make(ClusterInfo)
    for number in range(4):
        pod = ("kubectl", "exec", "-n", "default", f"cassandra-{number}", "--", "nodetool", "status")
        world.answers[pod] = (1, "", "error: unable to upgrade connection\n")
    cluster = world.call().result["cluster"]
    assert cluster["ring_known"] is False
    assert "RING_UNKNOWN" in [spot["code"] for spot in cluster["thin_spots"]]


def test_a_ring_that_is_cut_off_is_asked_of_the_next_pod(make):
    world = make(ClusterInfo)
    world.answers[("kubectl", "exec", "-n", "default", "cassandra-0", "--", "nodetool", "status")] = (
        "Datacenter: dc1\n==="
    )
    assert world.call().result["cluster"]["ring_known"] is True


def test_a_marker_that_is_broken_is_an_error(make):
    world = make(ClusterInfo)
    (world.state / "trial.json").write_text("{")
    answer = world.call()
    assert (answer.failed, answer.result["error_code"]) == (True, "UNREADABLE")


# -- cluster_wait_for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", ["member_ready", "node_object", "ring_normal"])
def test_what_is_there_is_seen_at_once(make, condition):
    result = make(ClusterWaitFor).call(condition=condition).result
    assert (result["met"], result["elapsed"], result["changed"]) == (True, 0.0, False)


def test_a_node_that_goes_is_seen(make):
    world = make(ClusterWaitFor)
    looks = []

    def nodes(_argv):
        looks.append(1)
        if len(looks) == 3:
            world.nodes.pop("dc2-n1")
        return nodes_json(world.nodes)

    world.answers[("kubectl", "get", "nodes")] = nodes
    result = world.call(condition="node_absent", timeout=60).result
    assert result["met"] and len(looks) == 3


def test_a_node_is_not_absent_while_the_ring_is_unknown(make):
    world = make(ClusterWaitFor)
    for number in range(4):
        world.answers[("kubectl", "exec", "-n", "default", f"cassandra-{number}", "--", "nodetool", "status")] = REFUSED
    answer = world.call(condition="node_absent", node="nobody")
    assert (answer.failed, answer.result["error_code"]) == (True, "TIMED_OUT")
    assert answer.result["details"]["last_state"]["ring_known"] is False


def test_silence_is_waited_out_and_told(make):
    world = make(ClusterWaitFor)
    world.answers[("kubectl", "get", "nodes")] = NO_QUORUM
    answer = world.call(timeout=30)
    assert answer.result["error_code"] == "TIMED_OUT"
    assert answer.result["details"]["last_state"]["error_code"] == "CLUSTER_UNAVAILABLE"


def test_in_check_mode_it_looks_once(make):
    world = make(ClusterWaitFor)
    result = world.call(check=True, node="nobody", timeout=600).result
    assert (result["met"], result["changed"], result["elapsed"]) == (False, False, 0.0)


def test_health_is_not_asked_without_a_way_to_verify_it(make):
    assert make(ClusterWaitFor).call(condition="health_all").result["error_code"] == "API_UNDECLARED"


# -- join_token --------------------------------------------------------------------------------------------------------


def test_a_token_is_made_once_and_then_found(make):
    world = make(JoinToken)
    planned = world.call(check=True).result
    assert (planned["changed"], planned["token"]) == (True, None) and world.tokens == []
    made, found = world.call(), world.call()
    assert (made.result["changed"], made.result["created_by_us"], made.result["token"]) == (True, True, JoinToken.token)
    assert (found.result["changed"], found.result["token_id"]) == (False, "fc853c")
    assert JoinToken.token not in json.dumps(made.result["actions"])


def test_the_mark_and_the_life_of_a_token(make):
    world = make(JoinToken)
    world.call(min_ttl=7200, ttl=60)
    (argv,) = [words for words in world.acted if words[2] == "create"]
    assert argv == ["kubeadm", "token", "create", "--ttl", "7200s", "--description", "kmsops.fortanix_dsm run=run-1"]


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": "2020-01-01T00:00:00Z"},
        {"usages": ["signing"]},
        {"expires": None},
    ],
)
def test_tokens_that_are_not_good_enough_are_left_alone(make, changes):
    world = make(JoinToken)
    world.add(token="aaaaaa.0123456789abcdef", **changes)
    result = world.call().result
    assert (result["changed"], result["token_id"]) == (True, "fc853c")
    assert len(world.tokens) == 2


def test_a_token_that_lasts_too_short_is_not_used(make):
    world = make(JoinToken)
    world.add(token="aaaaaa.0123456789abcdef")
    assert world.call(min_ttl=6 * 3600).result["token_id"] == "fc853c"
    assert world.call(min_ttl=3600).result["changed"] is False


def test_an_old_kubeadm_is_read_as_text(make):
    world = make(JoinToken)
    header = "TOKEN  TTL  EXPIRES  USAGES  DESCRIPTION  EXTRA GROUPS\n"
    row = "fc853c.6fd193ba34870ddf  23h  2099-01-01T00:00:00Z  authentication,signing  <none>  system:bootstrappers\n"
    world.answers[("kubeadm", "token", "list", "-o")] = (1, "", "Error: unknown shorthand flag: 'o' in -o\n")
    world.answers[("kubeadm", "token", "list")] = header + row
    result = world.call().result
    assert (result["changed"], result["created_by_us"], result["expires"]) == (False, False, "2099-01-01T00:00:00Z")


@pytest.mark.parametrize("text", ["garbage\n", '{"kind": "BootstrapToken", "token": "fc853c.6fd1'])
def test_a_list_that_is_not_understood_makes_no_token(make, text):
    world = make(JoinToken)
    world.answers[("kubeadm", "token", "list")] = text
    answer = world.call()
    assert answer.result["error_code"] == "UNREADABLE"
    assert not any(words[2] == "create" for words in world.acted)


def test_only_marked_tokens_of_the_run_are_deleted(make):
    world = make(JoinToken)
    world.add(description="kmsops.fortanix_dsm run=run-1")
    world.add(description="kmsops.fortanix_dsm run=run-2", token="bbbbbb.0123456789abcdef")
    world.add(description="by hand", token="cccccc.0123456789abcdef")
    planned = world.call(check=True, state="absent").result
    assert (planned["deleted"], len(world.tokens)) == (["fc853c"], 3)
    assert world.call(state="absent").result["deleted"] == ["fc853c"]
    assert world.call(state="absent").result["changed"] is False
    assert len(world.tokens) == 2


def test_a_token_of_other_people_is_not_deleted(make):
    world = make(JoinToken)
    world.add(description="by hand")
    answer = world.call(state="absent", token=JoinToken.token)
    assert answer.result["error_code"] == "TOKEN_NOT_OURS"
    assert JoinToken.token not in answer.text
    assert len(world.tokens) == 1


def test_absent_needs_to_know_what(make):
    answer = make(JoinToken).call(state="absent", run_id=None)
    assert answer.failed and "of the following are missing: token, run_id" in answer.result["msg"]


# -- datacenter_label --------------------------------------------------------------------------------------------------


def test_labels_are_set_once(make):
    world = make(DatacenterLabel)
    planned = world.call(check=True).result
    assert planned["changed"] and world.datacenter is None
    done = world.call().result
    assert planned["after"] == done["after"] == dict.fromkeys(MEMBERS, "dc1")
    assert all("--overwrite" not in action["argv"] for action in done["actions"])
    again = world.call().result
    assert (again["changed"], again["before"], again["late"]) == (False, again["after"], [])


def test_a_label_that_comes_after_the_database_is_told_and_no_failure(make):
    world = make(DatacenterLabel)
    result = world.call(labels=dict.fromkeys(MEMBERS, "elsewhere")).result
    assert sorted(result["late"]) == sorted(MEMBERS)
    assert "LABELLED_LATE" in world.warned[0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({**dict.fromkeys(MEMBERS, "dc1"), "nobody": "dc1"}, ["NODE_UNKNOWN"]),
        ({"dc1-n1": "dc1"}, ["PARTIAL_LABELS"]),
        ({"dc1-n1": "dc1", "dc2-n1": "DC1", "dc3-n1": "dc3"}, ["NAME_SPELLING"]),
        ({"dc1-n1": "dc 1", "dc2-n1": "dc2", "dc3-n1": "dc3"}, ["NAME_INVALID"]),
        ({"dc1-n1": "", "dc2-n1": "dc2", "dc3-n1": "dc3"}, ["NAME_INVALID", "PARTIAL_LABELS"]),
    ],
)
def test_labels_that_are_refused(make, labels, expected):
    world = make(DatacenterLabel)
    assert codes(world.call(labels=labels, accept=[])) == expected
    assert world.datacenter is None


def test_relabelling_a_node_that_holds_data_is_never_silent(make):
    world = make(DatacenterLabel)
    world.datacenter = "dc1"
    wanted = dict.fromkeys(MEMBERS, "dc9")
    assert codes(world.call(labels=wanted, accept=[])) == ["RELABEL"] * 3
    done = world.call(labels=wanted, accept=["RELABEL"]).result
    assert done["changed"] and all("--overwrite" in action["argv"] for action in done["actions"])
    assert {one["code"] for one in done["accepted"]} == {"RELABEL"}


# -- cluster_join ------------------------------------------------------------------------------------------------------


def test_a_clean_host_joins_once(make):
    world = make(ClusterJoin)
    planned = world.call(check=True).result
    assert (planned["changed"], planned["state"], world.operations.started) == (True, "member", [])
    done = world.call()
    assert (done.result["changed"], done.result["state"], done.result["before"]) == (
        True,
        "member",
        {"state": "absent"},
    )
    assert world.operations.started[0][1] == [
        "sdkms-cluster",
        "join",
        "--peer=192.0.2.11",
        f"--token={JoinToken.token}",
    ]
    assert done.result["joined_at"] and done.result["fingerprint"] == world.fingerprint
    assert JoinToken.token not in done.text
    again = world.call().result
    assert (again["changed"], again["before"], again["after"]) == (False, {"state": "member"}, {"state": "member"})
    assert len(world.operations.started) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"token": "fc853c.6fd193ba34870ddfGO"}, ["TOKEN_MALFORMED"]),
        ({"peer": "203.0.113.11"}, ["PEER_IS_SELF"]),
        ({"peer": "dr1"}, ["PEER_IS_SELF"]),
        ({"peer": "198.51.100.99"}, ["PEER_UNREACHABLE"]),
        ({"cluster_version": "5.6.1"}, ["VERSION"]),
        ({"own_version": "3.14.2", "cluster_version": "3.14.2"}, ["DSM_TOO_OLD", "DSM_TOO_OLD"]),
        (
            {"token": "x", "peer": "\u2013peer", "cluster_version": "5.6.1"},
            ["PEER_MALFORMED", "TOKEN_MALFORMED", "VERSION"],
        ),
    ],
)
def test_joins_that_are_refused(make, change, expected):
    world = make(ClusterJoin)
    answer = world.call(**change)
    assert codes(answer) == expected
    assert world.operations.started == []
    assert (
        change.get("token", JoinToken.token) not in json.dumps(answer.result["reasons"]) or change.get("token") == "x"
    )


def test_another_release_may_be_accepted(make):
    result = make(ClusterJoin).call(cluster_version="5.6.1", accept=["VERSION"]).result
    assert (result["state"], [one["code"] for one in result["accepted"]]) == ("member", ["VERSION"])


def test_a_host_with_leftovers_does_not_join(make):
    world = make(ClusterJoin)
    (world.root / "etc" / "old").write_text("x")
    answer = world.call()
    assert codes(answer) == ["LEFTOVER"]
    assert "cluster_reset" in answer.result["remedy"]


def test_a_member_of_another_cluster_does_not_join(make):
    world = make(ClusterJoin)
    world.effect("", [])
    world.nodes.pop("dc1-n1")
    assert codes(world.call()) == ["FOREIGN_MEMBER"]
    assert world.operations.started == []


def test_a_host_whose_control_plane_is_silent_does_not_join(make):
    world = make(ClusterJoin)
    world.effect("", [])
    world.answers[("kubectl", "get", "nodes")] = NO_QUORUM
    assert codes(world.call()) == ["MEMBERSHIP_UNKNOWN"]


def test_a_join_beside_another_operation_is_refused(make):
    world = make(ClusterJoin)
    world.operations.records["reset"] = ended(None, running=True)
    assert codes(world.call()) == ["OPERATION_CONFLICT"]


def test_a_second_run_attaches_to_the_running_join(make):
    world = make(ClusterJoin)
    world.operations = Lasting(effect=None)
    first = world.call(wait=False).result
    assert (first["state"], first["changed"]) == ("joining", True)
    (world.root / "etc" / "half").write_text("half done")
    planned = world.call(check=True).result
    assert (planned["changed"], planned["before"]) == (False, {"state": "joining"})
    second = world.call(wait=False).result
    assert (second["state"], second["changed"], second["before"]) == ("joining", False, {"state": "joining"})
    assert len(world.operations.started) == 1


def test_a_join_that_ended_while_nobody_looked_is_waited_for_and_not_repeated(make):
    world = make(ClusterJoin)
    world.operations.records["join"] = ended(0)
    (world.root / "etc" / "half").write_text("half done")
    looks = []

    def nodes(_argv):
        looks.append(1)
        if len(looks) == 3:
            world.nodes.update(DR)
        return nodes_json(world.nodes)

    Path(world.params["kubeconfig"]).write_text(world.conf)
    world.answers[("kubectl", "get", "nodes")] = nodes
    result = world.call(timeout=60).result
    assert (result["state"], result["changed"]) == ("member", False)


def test_a_join_of_long_ago_does_not_make_leftovers_a_join_under_way(make):
    world = make(ClusterJoin)
    world.operations.records["join"] = ended(0, reported=True)
    (world.root / "etc" / "old").write_text("x")
    assert codes(world.call()) == ["LEFTOVER"]


def test_a_join_that_somebody_else_waited_for_is_acknowledged_and_never_started_again(make):
    world = make(ClusterJoin)
    world.effect("", [])
    world.operations.records["join"] = ended(0)
    result = world.call(peer="198.51.100.11").result
    assert (result["changed"], result["state"]) == (False, "member")
    assert world.operations.records["join"].reported and world.operations.started == []


def test_a_pending_approval_is_a_state_and_goes_on(make):
    world = make(ClusterJoin)
    world.operations = Lasting(effect=None)
    world.operations.words = "waiting: request 7 must be approved by a system administrator"
    result = world.call().result
    assert (result["state"], result["changed"]) == ("awaiting_approval", True)
    assert "request 7" in result["vendor_words"]
    world.effect("", [])
    world.operations.records["join"] = ended(0, reported=True)
    assert world.call().result["state"] == "member"
    assert len(world.operations.started) == 1


def test_a_vendor_command_that_fails_for_want_of_approval_is_the_same_state(make):
    world = make(ClusterJoin)

    class Failing(FakeOperations):
        def start_or_attach(self, name, argv, **options):
            result = super().start_or_attach(name, argv, **options)
            self.records[name] = ended(3, "join request pending")
            return result

    world.operations = Failing()
    result = world.call().result
    assert (result["state"], result["vendor_words"]) == ("awaiting_approval", "join request pending")
    assert len(world.operations.started) == 1


def test_a_join_that_takes_too_long_tells_the_last_state(make):
    world = make(ClusterJoin)
    world.operations = Lasting(effect=None)
    world.operations.words = "attesting"
    answer = world.call()
    assert answer.result["error_code"] == "TIMED_OUT"
    assert answer.result["details"]["last_state"]["operation_running"] is True
    assert answer.result["details"]["output_tail"] == "attesting"
    assert "attaches" in answer.result["remedy"]


def test_a_join_that_failed_says_where_to_look(make):
    world = make(ClusterJoin)
    world.operations = FakeOperations(ends={"join": 1})
    answer = world.call()
    assert (answer.result["error_code"], answer.result["details"]["rc"]) == ("JOIN_FAILED", 1)


def test_a_join_that_stopped_half_way_is_given_up_and_says_what_to_do(make):
    world = make(ClusterJoin)
    world.operations = FakeOperations(ends={"join": 1}, effect=world.effect)
    for number in range(4):
        ring = ("kubectl", "exec", "-n", "default", f"cassandra-{number}", "--", "nodetool", "status")
        world.answers[ring] = lambda _argv: nodetool_status(world.nodes).replace("UN  203.0.113.11", "UJ  203.0.113.11")
    for _again in range(2):
        answer = world.call(timeout=3600)
        assert answer.result["error_code"] == "JOIN_HALF_DONE"
        assert (answer.result["details"]["rc"], answer.result["details"]["node"]["ring"]) == (1, "UJ")
        assert "cluster_remove" in answer.result["remedy"] and "cluster_reset" in answer.result["remedy"]
    assert len(world.operations.started) == 1


def test_a_node_that_becomes_whole_after_a_join_that_ended_badly_is_a_member(make):
    world = make(ClusterJoin)
    world.operations = FakeOperations(ends={"join": 1}, effect=world.effect)
    looks = []

    def ring(_argv):
        looks.append(1)
        text = nodetool_status(world.nodes)
        return text if len(looks) > 20 else text.replace("UN  203.0.113.11", "UJ  203.0.113.11")

    for number in range(4):
        world.answers[("kubectl", "exec", "-n", "default", f"cassandra-{number}", "--", "nodetool", "status")] = ring
    assert world.call(timeout=3600).result["state"] == "member"


def test_state_decides_and_not_the_exit_code(make):
    world = make(ClusterJoin)
    world.operations = FakeOperations(ends={"join": 1}, effect=world.effect)
    result = world.call().result
    assert result["state"] == "member"
    assert "exit code 1" in world.warned[0]


def test_a_command_that_exits_well_having_done_nothing_is_not_believed(make):
    world = make(ClusterJoin)
    world.operations = FakeOperations()
    assert world.call().result["error_code"] == "TIMED_OUT"


def test_a_node_that_joins_a_trial_gets_its_marker_and_any_other_loses_one(make):
    world = make(ClusterJoin)
    trial = {"run_id": "r1", "host": "spare9", "fingerprint": world.fingerprint, "production_fingerprint": PRODUCTION}
    world.call(trial=trial)
    marker = json.loads((world.state / "trial.json").read_text())
    assert (marker["host"], marker["created_on"], marker["fingerprint"]) == ("dr1", "spare9", world.fingerprint)


def test_a_stale_marker_does_not_survive_a_join(make):
    world = make(ClusterJoin)
    (world.state / "trial.json").write_text("{}")
    world.call()
    assert not (world.state / "trial.json").exists()


def test_a_node_that_joined_another_cluster_than_the_trial_is_told(make):
    world = make(ClusterJoin)
    answer = world.call(trial={"run_id": "r1", "host": "spare9", "fingerprint": "0" * 64})
    assert answer.result["error_code"] == "OTHER_CLUSTER"


def test_a_database_in_the_wrong_data_centre_is_told(make):
    world = make(ClusterJoin)
    result = world.call(datacenter="oor").result
    assert result["state"] == "member" and "LABELLED_LATE" in world.warned[0]


# -- cluster_remove ----------------------------------------------------------------------------------------------------


def test_a_node_is_removed_once(make):
    world = make(ClusterRemove)
    planned = world.call(check=True).result
    assert planned["changed"] and world.operations.started == []
    done = world.call().result
    assert (done["state"], done["node"]["name"], done["after"]) == ("removed", "dr1", planned["after"])
    assert world.operations.started[0][1] == ["sdkms-cluster", "remove", "--node", "dr1"]
    again = world.call().result
    assert (again["changed"], again["state"], again["before"]) == (False, "absent", again["after"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"confirm": "dr1"}, ["CONFIRM_MISMATCH"]),
        ({"expected_addresses": ["203.0.113.11"]}, ["ADDRESS_MISMATCH"]),
        ({"expected_serial": "SN-2"}, ["SERIAL_MISMATCH"]),
        ({"node": "dc1-n1"}, ["SELF_REMOVAL"]),
        ({"minimum_size": 4}, ["BELOW_MINIMUM"]),
        ({"also_dead": ["dc2-n1"]}, ["ALSO_DEAD_ALIVE"]),
        (
            {"confirm": "x", "expected_serial": "y", "node": "dc1-n1"},
            ["CONFIRM_MISMATCH", "SELF_REMOVAL", "SERIAL_MISMATCH"],
        ),
    ],
)
def test_removals_that_are_refused(make, change, expected):
    world = make(ClusterRemove)
    assert codes(world.call(**change)) == expected
    assert codes(world.call(check=True, **change)) == expected
    assert world.operations.started == []


def test_a_removal_without_its_action_plugin_is_refused(make):
    world = make(ClusterRemove)
    assert world.call(testimony=None).result["error_code"] == "TESTIMONY_MISSING"
    assert world.operations.started == []


def test_a_removal_that_did_nothing_is_not_believed(make):
    world = make(ClusterRemove)
    world.operations = FakeOperations()
    answer = world.call()
    assert (answer.result["error_code"], answer.result["details"]["node"]["name"]) == ("REMOVE_INCOMPLETE", "dr1")


def test_a_removal_that_worked_in_spite_of_its_exit_code_is_believed(make):
    world = make(ClusterRemove)
    world.operations = FakeOperations(ends={"remove": 9}, effect=world.effect)
    result = world.call().result
    assert result["state"] == "removed" and "exit code 9" in world.warned[0]


def test_nothing_is_removed_when_nobody_knows_what_is_there(make):
    world = make(ClusterRemove)
    world.answers[("kubectl", "get", "nodes")] = NO_QUORUM
    assert world.call().result["error_code"] == "CLUSTER_UNAVAILABLE"
    world.answers[("kubectl", "get", "nodes")] = '{"kind": "List", "items": []}'
    assert world.call().result["error_code"] == "UNREADABLE"


def test_a_node_is_not_absent_while_the_ring_cannot_be_read(make):
    world = make(ClusterRemove)
    for number in range(4):
        world.answers[("kubectl", "exec", "-n", "default", f"cassandra-{number}", "--", "nodetool", "status")] = REFUSED
    assert world.call(node="dr9").result["error_code"] == "RING_UNKNOWN"


def test_a_running_removal_is_attached_to_without_asking_again(make):
    world = make(ClusterRemove)
    world.operations.records["remove"] = ended(None, running=True)
    original = world.operations.start_or_attach

    def attach(name, argv, **options):
        world.effect(name, argv)
        return original(name, argv, **options)

    world.operations.start_or_attach = attach
    result = world.call(minimum_size=9).result
    assert result["state"] == "removed" and world.operations.started == []


# -- cluster_reset -----------------------------------------------------------------------------------------------------


def removed_host(make):
    """A DR host that production removed: state left over, its own apiserver refuses, two members testify."""
    world = make(ClusterReset)
    (world.state / "trial.json").unlink()
    world.answers[("kubectl", "get", "nodes")] = REFUSED
    heard = world.testimony(*((name, witness(name, world.fingerprint, list(MEMBERS))) for name in ("dc1-n1", "dc2-n1")))
    heard["ledger"]["folded"]["production_fingerprint"] = world.fingerprint
    world.params.update(because="removed", testimony=heard)
    return world


def test_a_removed_host_is_reset_once(make):
    world = removed_host(make)
    planned = world.call(check=True).result
    assert planned["changed"] and world.operations.started == []
    done = world.call().result
    assert (done["changed"], done["after"], done["after"]) == (True, {"state": [], "markers": []}, planned["after"])
    assert world.operations.started[0][1] == ["sdkms-cluster", "reset", "--delete-data"]
    again = world.call(testimony=None, confirm="anything").result
    assert (again["changed"], again["because"], len(world.operations.started)) == (False, None, 1)


def test_a_member_is_not_reset_whatever_the_cause(make):
    """Law 1: the host's own control plane lists it, production lists it, and nobody can talk it out of that."""
    world = removed_host(make)
    world.nodes = {**MEMBERS, **DR}
    world.answers[("kubectl", "get", "nodes")] = lambda _argv: nodes_json(world.nodes)
    for because in ("removed", "own_trial", "retired"):
        approval = {"by": "someone", "reason": "because"}
        everything = ["LEDGER_MISSING", "STILL_MEMBER", "TOO_FEW_WITNESSES", "UNVERIFIED"]
        answer = world.call(because=because, approval=approval, accept=everything, trial_hosts=["dr1"])
        assert answer.failed and any(one["hard"] for one in answer.result["reasons"]), because
    assert world.operations.started == []


@pytest.mark.parametrize("liar", ["dc1-n1", "dc2-n1"])
@pytest.mark.parametrize("named", [{"name": "dr1"}, {"name": "x", "addresses": ["203.0.113.11"]}])
def test_each_witness_alone_prevents_it(make, liar, named):
    world = removed_host(make)
    world.params["testimony"]["witnesses"][liar]["cluster"]["nodes"].append({"addresses": [], "host_id": None, **named})
    assert codes(world.call()) == ["STILL_LISTED"]
    assert world.operations.started == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"confirm": "dr2"}, ["CONFIRM_MISMATCH"]),
        ({"expected_addresses": ["192.0.2.11"]}, ["ADDRESS_MISMATCH"]),
        ({"expected_serial": "SN-9"}, ["SERIAL_MISMATCH"]),
        ({"host_role": "production"}, ["ROLE_FORBIDS"]),
    ],
)
def test_the_wrong_host_is_not_reset(make, change, expected):
    world = removed_host(make)
    assert codes(world.call(**change)) == expected
    assert world.operations.started == []


def test_a_silent_control_plane_is_no_proof_of_being_out(make):
    world = removed_host(make)
    world.answers[("kubectl", "get", "nodes")] = NO_QUORUM
    assert codes(world.call()) == ["MEMBERSHIP_UNKNOWN"]


def test_without_a_ledger_a_person_may_accept(make):
    world = removed_host(make)
    world.params["testimony"]["ledger"] = None
    assert codes(world.call()) == ["LEDGER_MISSING"]
    result = world.call(accept=["LEDGER_MISSING"]).result
    assert result["state"] == "clean" and result["accepted"][0]["code"] == "LEDGER_MISSING"


def test_hard_reasons_cannot_be_accepted(make):
    world = removed_host(make)
    world.params["testimony"]["witnesses"].pop("dc2-n1")
    assert codes(world.call(accept=["TOO_FEW_WITNESSES"])) == ["TOO_FEW_WITNESSES"]


def test_a_reset_without_its_action_plugin_is_refused(make):
    world = removed_host(make)
    assert world.call(testimony=None).result["error_code"] == "TESTIMONY_MISSING"


@pytest.mark.parametrize("name", ["join", "create", "remove", "restore"])
def test_a_reset_beside_another_operation_is_refused(make, name):
    world = removed_host(make)
    world.operations.records[name] = ended(None, running=True)
    assert codes(world.call()) == ["OPERATION_CONFLICT"]


def test_a_host_on_which_a_create_is_about_to_begin_is_not_clean(make):
    world = make(ClusterReset)
    Path(world.params["kubeconfig"]).unlink()
    world.operations.records["create"] = ended(None, running=True)
    assert "OPERATION_CONFLICT" in codes(world.call())
    assert (world.state / "trial.json").exists()


def test_a_reset_that_left_something_is_not_believed(make):
    world = removed_host(make)
    world.operations = FakeOperations()
    answer = world.call()
    assert (answer.result["error_code"], answer.result["details"]["rc"]) == ("RESET_INCOMPLETE", 0)


def test_a_running_reset_is_attached_to(make):
    world = removed_host(make)
    world.operations.records["reset"] = ended(None, running=True)
    original = world.operations.start_or_attach

    def attach(name, argv, **options):
        world.effect(name, argv)
        return original(name, argv, **options)

    world.operations.start_or_attach = attach
    world.params["testimony"]["witnesses"] = {}
    result = world.call().result
    assert result["state"] == "clean" and world.operations.started == []


def test_a_trial_is_reset_with_production_gone_and_its_records_go_with_it(make):
    world = make(ClusterReset)
    world.operations.records["create"] = ended(0)
    world.params["testimony"] = dict(world.testimony(), ledger=None)
    result = world.call().result
    assert (result["state"], result["accepted"]) == ("clean", [])
    assert not (world.state / "trial.json").exists()
    assert world.operations.status("create") is None


def test_a_marker_that_a_crash_left_behind_is_cleared_on_the_right_host_only(make):
    world = make(ClusterReset)
    Path(world.params["kubeconfig"]).unlink()
    assert world.call(confirm="dr2").result["error_code"] == "WRONG_HOST"
    assert (world.state / "trial.json").exists()
    assert world.call().result["changed"] is True
    assert world.call().result["changed"] is False


def test_a_cluster_that_was_opened_to_clients_is_no_trial(make):
    world = make(ClusterReset)
    (world.state / "opened.json").write_text("{}")
    assert codes(world.call()) == ["WAS_OPENED"]


# -- cluster_create ----------------------------------------------------------------------------------------------------


def test_a_cluster_is_created_once_with_a_derived_configuration(make):
    world = make(ClusterCreate)
    planned = world.call(check=True).result
    assert planned["changed"] and world.operations.started == [] and not (world.state / "trial.json").exists()
    done = world.call().result
    derived = Path(done["derived_config"])
    assert world.operations.started[0][1] == [
        "sdkms-cluster",
        "create",
        "--self=203.0.113.11/24",
        "--config",
        str(derived),
    ]
    assert derived.read_text() == "cluster:\n  name: acme\n" and derived.stat().st_mode & 0o077 == 0
    assert done["removed_blocks"] == ["backup"]
    assert (done["fingerprint"], done["marker"]["fingerprint"]) == (world.fingerprint, world.fingerprint)
    assert done["marker"]["production_fingerprint"] == PRODUCTION
    again = world.call().result
    assert (again["changed"], again["before"], again["after"]) == (False, done["after"], done["after"])
    assert len(world.operations.started) == 1


def test_the_marker_is_there_before_anything_starts(make):
    world = make(ClusterCreate)
    seen = []
    original = world.effect

    def effect(name, argv):
        seen.append(json.loads((world.state / "trial.json").read_text()))
        original(name, argv)

    world.operations = FakeOperations(effect=effect)
    world.call()
    assert (seen[0]["run_id"], seen[0]["host"], seen[0]["fingerprint"]) == ("run-1", "dr1", None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"self_address": "203.0.113.11"}, ["SELF_WITHOUT_MASK"]),
        ({"self_address": "203.0.113.300/24"}, ["SELF_MALFORMED"]),
        ({"self_address": "203.0.113.12/24"}, ["SELF_NOT_HERE"]),
        ({"config": "/nonexistent/config.yaml"}, ["CONFIG_MISSING"]),
        ({"confirm": "spare1"}, ["CONFIRM_MISMATCH"]),
        ({"host_role": "production"}, ["ROLE_FORBIDS"]),
        ({"host_role": "retired"}, ["ROLE_FORBIDS"]),
        ({"expected_serial": "SN-9"}, ["SERIAL_MISMATCH"]),
        ({"own_version": "3.14.1"}, ["DSM_TOO_OLD"]),
        ({"isolation": {"production_endpoints": []}}, ["ISOLATION_UNDECLARED"]),
        ({"isolation": {"production_endpoints": [{"address": "127.0.0.1"}]}}, ["NOT_ISOLATED"]),
        (
            {
                "isolation": {
                    "service_address": "203.0.113.11",
                    "production_endpoints": [{"address": "192.0.2.11"}],
                }
            },
            ["SERVICE_LEADS_HERE"],
        ),
        ({"forbidden_paths": ["acme"]}, ["FORBIDDEN_PATH"]),
    ],
)
def test_creates_that_are_refused(make, change, expected):
    world = make(ClusterCreate)
    assert codes(world.call(**change)) == expected
    assert codes(world.call(check=True, **change)) == expected
    assert world.operations.started == [] and not (world.state / "trial.json").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cluster:\n\tname: acme\n", 2),
        ("a: 1\nb: 2\na: 3\n", 3),
        ("backup:\n  cron_schedule: 1\n  cron_schedule: 2\n", 3),
    ],
)
def test_a_configuration_with_tabs_or_double_keys_is_refused_with_the_line(make, text, line):
    world = make(ClusterCreate)
    Path(world.params["config"]).write_text(text)
    answer = world.call()
    assert codes(answer) == ["CONFIG_INVALID"]
    assert f"line {line}:" in answer.result["reasons"][0]["message"]


def test_the_service_address_on_loopback_leads_here_too(make):
    world = make(ClusterCreate)
    world.answers[("ip", "-o", "addr", "show")] += (
        "1: lo    inet 198.51.100.1/32 scope global lo\\       valid_lft forever\n"
    )
    isolation = {"service_address": "198.51.100.1", "production_endpoints": [{"address": "192.0.2.11"}]}
    assert codes(world.call(isolation=isolation)) == ["SERVICE_LEADS_HERE"]


def test_an_endpoint_that_refuses_may_be_accepted(make, monkeypatch):
    world = make(ClusterCreate)
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _isolation

    monkeypatch.setattr(_isolation, "try_connection", lambda address, port, _seconds: Probe(address, port, "refused"))
    assert codes(world.call()) == ["ISOLATION_UNPROVED"]
    assert world.call(accept=["ISOLATION_UNPROVED"]).result["changed"] is True


def test_a_member_does_not_create(make):
    world = make(ClusterCreate)
    world.effect("", [])
    assert codes(world.call()) == ["ALREADY_MEMBER"]


def test_state_of_somebody_else_is_not_created_over(make):
    world = make(ClusterCreate)
    (world.root / "etc" / "old").write_text("x")
    assert codes(world.call()) == ["DATA_PRESENT"]


def test_a_host_that_production_lists_does_not_create(make):
    world = make(ClusterCreate)
    world.params["testimony"] = world.testimony(("dc1-n1", witness("dc1-n1", PRODUCTION, [*MEMBERS, "dr1"])))
    assert codes(world.call()) == ["STILL_LISTED"]


def test_a_create_without_its_action_plugin_is_refused(make):
    assert make(ClusterCreate).call(testimony=None).result["error_code"] == "TESTIMONY_MISSING"


def test_a_half_done_create_goes_on_under_the_same_run_only(make):
    world = make(ClusterCreate)
    world.operations = FakeOperations(
        ends={"create": 1}, effect=lambda _n, _a: (world.root / "etc" / "x").write_text("x")
    )
    world.answers[("kubectl", "get", "nodes")] = REFUSED
    assert world.call().result["error_code"] == "CREATE_INCOMPLETE"
    assert codes(world.call(run_id="run-2")) == ["DATA_PRESENT"]
    world.answers[("kubectl", "get", "nodes")] = world._nodes
    world.operations = FakeOperations(effect=world.effect)
    result = world.call().result
    assert result["changed"] and result["marker"]["fingerprint"] == world.fingerprint


def test_a_create_that_failed_may_still_be_whole_after_a_heartbeat(make, monkeypatch):
    """Its exit code is no verdict: what counts is the cluster, and a kubelet reports every ten seconds."""
    world = make(ClusterCreate)
    world.operations = FakeOperations(ends={"create": 1}, effect=world.effect)
    world.answers[("kubectl", "get", "nodes")] = REFUSED
    pass_time, slept = _cluster.time.sleep, []

    def sleep(seconds):
        slept.append(seconds)
        pass_time(seconds)
        if sum(slept) >= 10:
            world.answers[("kubectl", "get", "nodes")] = world._nodes

    monkeypatch.setattr(_cluster.time, "sleep", sleep)
    result = world.call().result
    assert result["changed"] and result["marker"]["fingerprint"] == world.fingerprint


def test_a_create_that_ended_while_nobody_looked_is_settled_and_not_repeated(make):
    world = make(ClusterCreate)
    world.call()
    marker = json.loads((world.state / "trial.json").read_text())
    (world.state / "trial.json").write_text(json.dumps(dict(marker, fingerprint=None)))
    result = world.call().result
    assert (result["changed"], result["marker"]["fingerprint"]) == (True, world.fingerprint)
    assert len(world.operations.started) == 1


def test_a_cluster_with_production_s_fingerprint_is_never_settled(make):
    world = make(ClusterCreate)
    world.params["testimony"]["ledger"]["folded"]["production_fingerprint"] = world.fingerprint
    assert world.call().result["error_code"] == "IS_PRODUCTION"


@pytest.mark.parametrize("run_id", ["", "../x", "a b", "x\n", "x" * 65])
def test_a_run_id_is_a_file_name(make, run_id):
    assert make(ClusterCreate).call(run_id=run_id).result["error_code"] == "RUN_ID_INVALID"


def test_joining_and_creating_share_no_operation_name():
    assert _joining.OPERATION == "join"
    assert commands("dr1", DR)  # the worlds above speak for hosts that exist
