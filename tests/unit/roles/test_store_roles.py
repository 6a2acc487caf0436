# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles of the store decide by themselves, evaluated by Ansible."""

from __future__ import annotations

import base64
import hashlib
import re
import time

from many_backups import Filler

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Item, Unit
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import SftpEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Attributes
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import SshTarget

ONE = {"path": "backup_7.tar.gz", "size": 7, "mtime": 1700000000}
TREE = [{"path": "n1/Data.db", "size": 8, "mtime": 1700000001}, {"path": "n2/Data.db", "size": 9, "mtime": 1700000002}]
LANDING = {"name": "landing", "address": "192.0.2.50", "user": "dsmbackup", "path": "/b/*"}


def expected(place, files, host="192.0.2.50", already=False):
    """A backup as backup_ship tells it: where each file lies no path of the backup has to show."""
    there = [{**file, "source_path": f"{place}/{file['path']}" if len(files) > 1 else place} for file in files]
    return {"already": already, "source": {"host": host, "path": place}, "files": there}


def keyed(host, port, place, files):
    """The same with the key that the store makes of it."""
    backup = expected(place, files, host)
    items = tuple(Item("", file["path"], Attributes(file["size"], 0, file["mtime"])) for file in files)
    key = Unit(place, items, ()).key(SftpEndpoint(SshTarget(host, "u", port=port)).place)
    return {**backup, "source": {**backup["source"], "key": key}}


def test_what_is_new_is_hashed_at_the_path_that_it_has_there(decide_all):
    new = [
        expected("/b/backup_7.tar.gz", [ONE]),
        expected("/b/old", [ONE], already=True),
        expected("/b/20260101", TREE),
        {**expected("/d", TREE), "source": {"host": "192.0.2.50", "path": "/d/n*", "layout": "together"}},
        expected("/c/x", [dict(ONE, path="x")], host="192.0.2.51"),
    ]
    wanted = {
        "192.0.2.50": [
            {"path": "/b/backup_7.tar.gz", "size": 7, "mtime": 1700000000},
            {"path": "/b/20260101/n1/Data.db", "size": 8, "mtime": 1700000001},
            {"path": "/b/20260101/n2/Data.db", "size": 9, "mtime": 1700000002},
            {"path": "/d/n1/Data.db", "size": 8, "mtime": 1700000001},
            {"path": "/d/n2/Data.db", "size": 9, "mtime": 1700000002},
        ],
        "192.0.2.51": [{"path": "/c/x", "size": 7, "mtime": 1700000000}],
    }
    looks = [{"backups": new}, {"msg": "one is growing", "details": {"backups": new}}, {"msg": "broken"}]
    sources = [LANDING, dict(LANDING, path="/d/*"), dict(LANDING, address="192.0.2.51"), {"path": "/local/*"}]
    inputs = [{"__backup_ship_expected": look, "backup_ship_sources": sources} for look in looks]
    answers = decide_all("backup_ship", inputs, "__backup_ship_expected_files")
    assert [answer["__backup_ship_expected_files"] for answer in answers] == [wanted, wanted, {}]


def test_a_look_that_saw_nothing_is_another_one_than_none_at_all(decide_all):
    seen = [{"place": "192.0.2.50", "path": "/b/*", "backups": {"/b/x": "0" * 64}}]
    cases = [
        ({}, {}, []),
        ({"at_sources": seen}, {"attached": True}, []),
        ({"at_sources": seen}, {"attached": False}, [seen]),
        ({"failed": True, "details": {"at_sources": seen}}, {}, [seen]),
        ({"failed": True, "details": {"at_sources": []}}, {}, [[]]),
        ({"failed": True, "msg": "broken"}, {}, [[]]),
        # What was discarded may come after the look.
        ({"at_sources": seen}, {"attached": False, "discarded": ["2026-11-22T00:10:00Z"]}, [[]]),
    ]
    inputs = [{"__backup_ship_look": look, "__backup_ship_started": started} for look, started, _wanted in cases]
    found = decide_all("backup_ship", inputs, "__backup_ship_looks_before")
    assert [one["__backup_ship_looks_before"] for one in found] == [wanted for _look, _started, wanted in cases]


def test_what_a_look_saw_too_early_is_told_to_the_run_that_ships(decide_all):
    looks = [{"ahead_of_time": ["a"]}, {"details": {"ahead_of_time": ["a"]}}, {"msg": "broken"}, {}]
    found = decide_all(
        "backup_ship", [{"__backup_ship_expected": look} for look in looks], "__backup_ship_ahead_of_time"
    )
    assert [one["__backup_ship_ahead_of_time"] for one in found] == [["a"], ["a"], [], []]


def test_what_one_look_waited_for_the_next_one_does_not_wait_for_as_long_again(decide_all):
    now = time.time()
    cases = [(3600, 60, 0, 3600), (3600, 60, 5000, 120), (20, 60, 5000, 20), (3600, 60, 1000, 2600)]
    inputs = [
        {"backup_ship_wait": wait, "backup_ship_quiet": quiet, "__backup_ship_waiting_since": str(now - gone)}
        for wait, quiet, gone, _wanted in cases
    ]
    found = decide_all("backup_ship", inputs, "__backup_ship_patience")
    for one, (wait, quiet, _gone, wanted) in zip(found, cases, strict=True):
        # So long Ansible takes to start, on a machine of any speed.
        assert min(wait, max(wanted - (time.time() - now) - 1, quiet + 60)) <= one["__backup_ship_patience"] <= wanted


def test_what_came_is_verified_also_where_the_module_refused_something(decide_all):
    came = {"id": "2", "already": False, "published": True}
    backups = [{"id": "1", "already": True, "published": True}, came, {"id": "3", "already": False, "published": False}]
    good, refused = {"backups": backups}, {"msg": "two had no room", "details": {"backups": backups}}
    inputs = [{"__backup_ship_result": result} for result in (good, refused, {"msg": "broken"}, {"skipped": True})]
    answers = decide_all("backup_ship", inputs, "__backup_ship_came")
    assert [answer["__backup_ship_came"] for answer in answers] == [["2"], ["2"], [], []]


def test_hashes_reach_the_source_that_they_are_of_and_no_other(decide):
    asked = {"address": "192.0.2.50", "name": "landing"}
    inputs = {
        "__backup_ship_hashed": {
            "results": [
                {"__backup_ship_host": asked, "hashes": {"/b/x": "0" * 64}},
                {"__backup_ship_host": dict(asked, address="192.0.2.51"), "unreachable": True},
            ]
        },
        "__backup_ship_hashes": {"192.0.2.50": {"/b/x": "0" * 64}},
        "__backup_ship_skews": {"192.0.2.51": 0},
        "backup_ship_key_file": "/key",
        "backup_ship_known_hosts": "/known",
        "backup_ship_sources": [LANDING, dict(LANDING, address="192.0.2.51"), {"path": "/local/*"}],
    }
    found = decide("backup_ship", inputs, "__backup_ship_found_hashes", "__backup_ship_sources")
    assert found["__backup_ship_found_hashes"] == inputs["__backup_ship_hashes"]
    login = {"port": 22, "user": "dsmbackup", "key_file": "/key", "known_hosts": "/known"}
    there = {"path": "/b/*", "layout": "single"}
    assert found["__backup_ship_sources"] == [
        {"host": "192.0.2.50", **login, **there, "hashes": {"/b/x": "0" * 64}},
        {"host": "192.0.2.51", **login, **there, "clock_skew": 0},
        {"path": "/local/*", "layout": "single"},
    ]


def test_two_hosts_behind_one_address_have_clocks_hashes_and_deliveries_of_their_own(decide):
    """Both deliver the same path; of three sources that nobody manages one is on the host of a managed one."""
    first, second = dict(LANDING, port=2201), dict(LANDING, port="2202")
    unnamed = {name: value for name, value in second.items() if name != "name"}
    sources = [first, second, unnamed, dict(unnamed, port=2203), dict(unnamed, port=22)]
    backups = [
        keyed("192.0.2.50", 2201, "/b/x", [dict(ONE, path="x")]),
        keyed("192.0.2.50", 2202, "/b/x", [dict(ONE, path="x", size=8)]),
        keyed("192.0.2.50", 2202, "/b/t\u00e4g", TREE),
        keyed("192.0.2.50", 22, "/b/y", [dict(ONE, path="y")]),
    ]
    at = ["[192.0.2.50]:2201", "[192.0.2.50]:2202"]
    hashed = [{"__backup_ship_host": {"address": one, "name": "landing"}, "hashes": {"/b/x": one}} for one in at]
    inputs = {
        "backup_ship_sources": sources,
        "backup_ship_key_file": "/k",
        "backup_ship_known_hosts": "/h",
        "__backup_ship_skews": {at[0]: -30, at[1]: 5},
        "__backup_ship_hashes": {at[0]: {"/b/x": "0" * 64}},
        "__backup_ship_expected": {"backups": backups},
        "__backup_ship_hashed": {"results": hashed},
    }
    wanted = ("sources", "managed", "hosts", "expected_files", "found_hashes")
    found = decide("backup_ship", inputs, *(f"__backup_ship_{name}" for name in wanted))
    assert [one.get("clock_skew") for one in found["__backup_ship_sources"]] == [-30, 5, 5, None, None]
    assert [one["host"] for one in found["__backup_ship_sources"]] == ["192.0.2.50"] * 5
    assert ["hashes" in one for one in found["__backup_ship_sources"]] == [True, False, False, False, False]
    for name in ("managed", "hosts"):
        assert [one["address"] for one in found[f"__backup_ship_{name}"]] == at
    files = found["__backup_ship_expected_files"]
    assert {end: [(one["path"], one["size"]) for one in there] for end, there in files.items()} == {
        at[0]: [("/b/x", 7)],
        at[1]: [("/b/x", 8), ("/b/t\u00e4g/n1/Data.db", 8), ("/b/t\u00e4g/n2/Data.db", 9)],
        "192.0.2.50": [("/b/y", 7)],
    }
    assert found["__backup_ship_found_hashes"] == {one: {"/b/x": one} for one in at}


def test_a_directory_of_the_store_is_no_managed_host_whatever_it_is_called(decide):
    found = decide(
        "backup_ship",
        {"backup_ship_sources": [{"name": "landing", "path": "/drop/*"}, dict(LANDING, name="elsewhere")]},
        "__backup_ship_managed",
    )
    assert found["__backup_ship_managed"] == []


def clocks(said, before, after):
    """What sources said, by address."""
    between = {"member": False, "before": before, "after": after}
    return [{"address": address, "clock": clock, **between} for address, clock in said.items()]


def member(before, clock, after):
    return {"member": True, "address": "", "before": before, "clock": clock, "after": after}


def test_f17_a_clock_is_taken_for_as_far_ahead_as_it_can_be_and_that_of_the_member_for_as_little(decide_all):
    """The store said 100 before a host was asked and 103 afterwards."""
    said = {"in between": "102", "behind": "40", "ahead": "160", "away": "", "odd": "date: command not found"}
    cases = [
        {"__backup_ship_clocks": [member("100", clock, "103"), *clocks(said, "100", "103")]} for clock in said.values()
    ]
    found = decide_all("backup_ship", cases, "__backup_ship_measured_skews", "__backup_ship_snapshot_skews")
    for one in found:
        assert one["__backup_ship_measured_skews"] == {"in between": 0, "behind": -60, "ahead": 60}
    assert [one["__backup_ship_snapshot_skews"] for one in found] == [[0], [-63], [57], [], []]


def test_a_clock_is_right_within_a_second_of_a_narrow_window_and_in_a_wide_one_off_by_all_of_it(decide_all):
    """All that is read is cut to whole seconds. The connection may have taken what is between, before or after."""
    said = {"98": "98", "99": "99", "100": "100", "103": "103", "104": "104", "105": "105"}
    found = decide_all(
        "backup_ship",
        [
            {"__backup_ship_clocks": [member("100", clock, after), *clocks(said, "100", after)]}
            for after in ("103", "104")
            for clock in said.values()
        ],
        "__backup_ship_measured_skews",
        "__backup_ship_snapshot_skews",
    )
    narrow, wide = [-2, 0, 0, 0, 0, 5], [-2, -1, 0, 3, 4, 5]
    for one, skews in zip(found, [narrow] * 6 + [wide] * 6):
        assert list(one["__backup_ship_measured_skews"].values()) == skews
    little = [one["__backup_ship_snapshot_skews"] for one in found]
    assert little == [[-5], [0], [0], [0], [0], [2], [-6], [-5], [-4], [-1], [0], [1]]


def test_of_several_readings_of_a_clock_the_narrowest_counts(decide_all):
    """Ten seconds are fewer than nine as text; where the store's clock was set back meanwhile nothing is known."""
    readings = [("100", "100", "140"), ("200", "203", "209"), ("300", "303", "310"), ("400", "401", "390")]
    times = [dict(zip(("before", "clock", "after"), one)) for one in readings]
    cases = [[*times], [times[0], {**times[1], "clock": ""}], [{**times[0], "clock": ""}], [times[3]]]
    inputs = [
        {
            "__backup_ship_clocks": [
                {"member": which, "address": "" if which else "a", **one} for one in case for which in (True, False)
            ]
        }
        for case in cases
    ]
    found = decide_all("backup_ship", inputs, "__backup_ship_measured_skews", "__backup_ship_snapshot_skews")
    assert [one["__backup_ship_measured_skews"] for one in found] == [{"a": 3}, {"a": 0}, {}, {}]
    assert [one["__backup_ship_snapshot_skews"][:1] for one in found] == [[-6], [-40], [], []]


def test_who_answered_and_took_long_is_asked_again(decide_all):
    """By what a host said last: nobody was asked, within 3 s, within 4 s, not at all, while the clock was set back."""
    told = [None, ("100", "101", "103"), ("100", "101", "104"), ("100", "", "130"), ("100", "101", "90")]
    inputs = [
        {
            "witnesses_member": "dc1-n1",
            "backup_ship_sources": [LANDING, dict(LANDING, port=2201), {"path": "/local/*"}],
            "__backup_ship_clocks": []
            if one is None
            else [
                member("0", "0", "40"),
                member(*one),
                *clocks({"192.0.2.50": "20"}, "20", "21"),
                *clocks({"[192.0.2.50]:2201": one[1]}, one[0], one[2]),
            ],
        }
        for one in told
    ]
    answers = [one["__backup_ship_unclear"] for one in decide_all("backup_ship", inputs, "__backup_ship_unclear")]
    asked = [[(one["name"], one["address"]) for one in answer] for answer in answers]
    slow = [("dc1-n1", ""), ("landing", "[192.0.2.50]:2201")]
    assert asked == [[slow[0], ("landing", "192.0.2.50"), slow[1]], [], slow, [], slow]


HASHED = {"__backup_ship_host": LANDING, "hashes": {"/b/x": "0" * 64}}
GONE = {"path": "/b/y", "code": "GONE", "message": "/b/y is not there any more"}
SEEN = {"backups": [expected("/b/backup_7.tar.gz", [ONE])]}
#: the look at the sources, what a managed source answered, and what has to be told of it
UNHASHED = {
    "every file was hashed": (SEEN, {**HASHED, "unhashed": []}, ""),
    "one file was not": (SEEN, {**HASHED, "unhashed": [GONE]}, "left out 1 of 2 files (the first is GONE, /b/y is not"),
    "nobody answers": (
        SEEN,
        {"__backup_ship_host": LANDING, "unreachable": True, "msg": "No route to host.\nmore"},
        "is unreachable (No route to host.).",
    ),
    "the module failed": (SEEN, {"__backup_ship_host": LANDING, "msg": "no Python"}, "hashed nothing (no Python)"),
    "it failed without a word": (SEEN, {"__backup_ship_host": LANDING}, "hashed nothing (no reason was given)"),
    "there was nothing to hash": ({"backups": []}, None, ""),
    "the look was refused": ({"msg": "GROWING"}, None, "was not asked, because the look at the sources was refused"),
    "it was refused for another": ({"msg": "EMPTY", "details": SEEN}, {**HASHED, "unhashed": []}, ""),
}


def test_a_source_that_gave_no_hash_is_told_with_the_reason(decide_all):
    inputs = [
        {
            "__backup_ship_expected": look,
            "__backup_ship_hashed": {"results": [] if answer is None else [answer]},
            "backup_ship_sources": [LANDING, {"path": "/local/*"}],
        }
        for look, answer, _wanted in UNHASHED.values()
    ]
    answers = decide_all("backup_ship", inputs, "__backup_ship_unhashed_sentences")
    for (name, (_look, _answer, wanted)), found in zip(UNHASHED.items(), answers):
        sentences = found["__backup_ship_unhashed_sentences"]
        assert len(sentences) == bool(wanted), name
        for sentence in sentences:
            assert sentence.startswith("NO_SOURCE_HASH: landing ") and wanted in sentence, name
            assert ". What to do: " in sentence


ALONE = {
    "whose it is was told before": ({"production_fingerprint": "f", "joins": {"dr1": {}}, "removed": {"dr1": {}}}, []),
    "nobody ever told": ({"production_fingerprint": None, "joins": {}, "removed": {}}, ["CLUSTER_UNKNOWN"]),
    "a node is being prepared": (
        {"production_fingerprint": "f", "joins": {"dr1": {}, "dr2": {}}, "removed": {"dr1": {}}},
        ["MEMBERSHIP_CHANGING"],
    ),
    "there is no ledger": (None, ["CLUSTER_UNKNOWN"]),
}


def test_a_store_by_itself_ships_only_what_no_member_has_to_be_asked_about(decide_all):
    inputs = [{"__backup_ship_book": {"folded": folded} if folded else {}} for folded, _codes in ALONE.values()]
    answers = [
        answer["__backup_ship_alone_sentences"]
        for answer in decide_all("backup_ship", inputs, "__backup_ship_alone_sentences")
    ]
    codes = [[sentence.partition(":")[0] for sentence in sentences] for sentences in answers]
    assert dict(zip(ALONE, codes)) == {name: codes for name, (_folded, codes) in ALONE.items()}
    assert "dr2 joined" in answers[2][0]
    assert all("What to do: " in sentence for sentences in answers for sentence in sentences)


PLACES = {
    "/home/dsmbackup/backup/*": "/home/dsmbackup/backup",
    "/home/dsmbackup/*/backup_*.tar": "/home/dsmbackup",
    "/b/data[0-9]/x": "/b",
    "/b/back?p": "/b",
    "/b/newest.tar": "/b",
}
CLEANED = {
    "source_clean_store": "store",
    "source_clean_older_than": 604800,
    "source_clean_keep": 2,
    "source_clean_sources": [LANDING, {"path": "/local/*"}],
}
STRANGER = {"address": "192.0.2.51", "user": "x", "path": "/b/*"}
NOT_CLEANED = {
    "allowed": ({}, []),
    "nobody allowed it": ({"source_clean_older_than": 0}, ["CLEAN_NOT_ALLOWED"]),
    "no host of the inventory": (
        {"source_clean_sources": [LANDING, STRANGER, dict(LANDING, name="elsewhere")]},
        ["SOURCE_NOT_MANAGED"],
    ),
    "everything at once": (
        {"source_clean_older_than": 3599, "source_clean_keep": 0, "source_clean_sources": []},
        ["CLEAN_NOT_ALLOWED", "KEEP_NOTHING", "SOURCE_MISSING"],
    ),
}


def test_nothing_goes_at_a_source_unless_it_was_allowed_and_only_below_its_directory(decide_all):
    inputs = [{**CLEANED, **changes} for changes, _codes in NOT_CLEANED.values()]
    inputs.append({**CLEANED, "source_clean_sources": [dict(LANDING, path=path) for path in PLACES]})
    *answers, last = decide_all("source_clean", inputs, "__source_clean_checks", "__source_clean_places")
    codes = [[one["code"] for one in answer["__source_clean_checks"] if one["refuse"]] for answer in answers]
    assert dict(zip(NOT_CLEANED, codes)) == {name: codes for name, (_changes, codes) in NOT_CLEANED.items()}
    assert answers[0]["__source_clean_places"] == [
        {"name": "landing", "host": "192.0.2.50", "root": "/b"},
        {"name": "store", "host": "", "root": "/local"},
    ]
    judged = {"results": [{"removed": [], "stays": [{"name": "/b/x", "reasons": [{"message": "it is 5 s old"}]}]}]}
    told = decide_all("source_clean", [{**CLEANED, "__source_clean_planned": judged}], "__source_clean_plan")
    assert told[0]["__source_clean_plan"] == ["nothing may go", "stays: /b/x (it is 5 s old)"]
    roots = [place["root"] for place in last["__source_clean_places"]]
    assert roots == list(dict.fromkeys(PLACES.values()))


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
MADE_OF = f"config {'c' * 64} to {sha256(CERTIFICATE)}"
KEPT = {
    "backup_parts_members": ["dc1-n1"],
    "backup_parts_config_path": "/etc/dsm/config.yaml",
    "backup_parts_directory": "/var/lib/kmsops/escrow",
    "backup_parts_recipients": ["officer.pem"],
    "backup_parts_secrets_bundle": "",
    "witnesses_member": "dc1-n1",
    "__backup_parts_texts": {"officer.pem": CERTIFICATE},
    "__backup_parts_secrets_text": "",
    "__backup_parts_config": {"stat": {"exists": True, "checksum": "c" * 64}},
    "__backup_parts_bundle": {"stat": {"exists": True}},
    "__backup_parts_made": {"content": base64.b64encode(MADE_OF.encode()).decode()},
}
NO_CONFIG = {"backup_parts_recipients": [], "__backup_parts_texts": {}, "witnesses_member": ""}
BUNDLES = {
    "the bundle is current": ({}, [], True),
    "never made": ({"__backup_parts_bundle": {"stat": {"exists": False}}, "__backup_parts_made": {}}, [], False),
    "killed while it was made": ({"__backup_parts_made": {"msg": "not found"}}, [], False),
    "the configuration changed": (
        {"__backup_parts_config": {"stat": {"exists": True, "checksum": "d" * 64}}},
        [],
        False,
    ),
    "another person may open it": (
        {
            "backup_parts_recipients": ["officer.pem", "second.pem"],
            "__backup_parts_texts": {"officer.pem": CERTIFICATE, "second.pem": CERTIFICATE + "\n"},
        },
        [],
        False,
    ),
    "only a bundle of secrets": (
        {**NO_CONFIG, "backup_parts_secrets_bundle": "s", "__backup_parts_secrets_text": "-----BEGIN CMS-----"},
        [],
        None,
    ),
    "nothing is asked for": (NO_CONFIG, ["NOTHING_TO_ESCROW"], None),
    "no member, no bundle": (
        {"witnesses_member": "", "__backup_parts_config": {"skipped": True}, "backup_parts_secrets_bundle": "s"},
        ["NO_HEALTHY_MEMBER", "BUNDLE_MISSING"],
        None,
    ),
    "everything at once": (
        {
            "__backup_parts_config": {"stat": {"exists": False}},
            "__backup_parts_texts": {"officer.pem": CERTIFICATE + "-----BEGIN PRIVATE KEY-----"},
            "backup_parts_secrets_bundle": "s",
            "__backup_parts_secrets_text": "in the clear",
        },
        ["CONFIG_MISSING", "RECIPIENT_INVALID", "NOT_ENCRYPTED"],
        None,
    ),
}


def test_a_bundle_is_made_when_it_must_be_and_never_in_the_clear(decide_all):
    inputs = [{**KEPT, **changes} for changes, _codes, _current in BUNDLES.values()]
    answers = decide_all(
        "backup_parts", inputs, "__backup_parts_checks", "__backup_parts_current", "__backup_parts_recipient_files"
    )
    found = {}
    for name, answer in zip(BUNDLES, answers):
        codes = [one["code"] for one in answer["__backup_parts_checks"] if one["refuse"]]
        found[name] = (codes, answer["__backup_parts_current"] if BUNDLES[name][2] is not None else None)
    assert found == {name: (codes, current) for name, (_changes, codes, current) in BUNDLES.items()}
    assert answers[0]["__backup_parts_recipient_files"] == [f"/var/lib/kmsops/escrow/{sha256(CERTIFICATE)[:16]}.pem"]


def test_verification_judges_by_all_that_the_inventory_says(tmp_path, play_store):
    filler = Filler(tmp_path / "store", 48)  # the newest is two days old
    filler.publish(files=[("backup.bin", b"0123456789")])
    filler.publish(files=[("backup.bin", b"01")])
    filler.close()
    metrics = tmp_path / "dsm.prom"
    wrong = {
        "dsm_verify_slice": "auto/2",
        "dsm_backup_schedule": "0 * * * *",
        "dsm_backup_grace": 0,
        "dsm_backup_max_age": 1,
        "dsm_backup_min_ratio": 0.9,
        "dsm_backup_provenance": "by_template",
        "dsm_required_parts": ["config", "secrets"],
        "dsm_store_metrics": str(metrics),
    }
    codes = ["LATE", "STALE", "SHRUNK", "PROVENANCE", "INCOMPLETE"]
    told = play_store("verify_backups", "-v", dsm_store_path=str(tmp_path / "store"), dsm_accept=codes, **wrong)
    assert [code for code in codes if f'"code": "{code}"' not in told] == [], told
    assert "failed=0" in told and "changed=0" in told, told
    assert re.search(r'"0000000[12]-\w+ +\d+ +(whole|a part|nothing) +ok', told), told
    assert "kmsops_dsm_store_verified_copies" in metrics.read_text(encoding="utf-8")


def test_secrets_that_somebody_forgot_to_encrypt_are_refused_and_never_shown(tmp_path, play_store):
    bundle = tmp_path / "secrets.yaml"
    bundle.write_text("apiVersion: v1\nkind: Secret\ndata:\n  master: VGhlTWFzdGVyS2V5\n")
    told = play_store(
        "escrow_parts", "-vvv", "--extra-vars", "dsm_nodes_group=dsm_store", dsm_secrets_bundle=str(bundle)
    )
    assert "is no encrypted bundle" in told and "VGhlTWFzdGVyS2V5" not in told
