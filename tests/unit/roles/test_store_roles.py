# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles of the store decide by themselves, evaluated by Ansible."""

from __future__ import annotations

ONE = {"path": "backup_7.tar.gz", "size": 7, "mtime": 1700000000}
TREE = [{"path": "n1/Data.db", "size": 8, "mtime": 1700000001}, {"path": "n2/Data.db", "size": 9, "mtime": 1700000002}]
LANDING = {"name": "landing", "address": "192.0.2.50", "user": "dsmbackup", "path": "/b/*"}


def expected(place, files, host="192.0.2.50", already=False):
    return {"already": already, "source": {"host": host, "path": place}, "files": files}


def test_what_is_new_is_hashed_at_the_path_that_it_has_there(decide_all):
    new = [
        expected("/b/backup_7.tar.gz", [ONE]),
        expected("/b/old", [ONE], already=True),
        expected("/b/20260101", TREE),
        expected("/c/x", [dict(ONE, path="x")], host="192.0.2.51"),
    ]
    wanted = {
        "192.0.2.50": [
            {"path": "/b/backup_7.tar.gz", "size": 7, "mtime": 1700000000},
            {"path": "/b/20260101/n1/Data.db", "size": 8, "mtime": 1700000001},
            {"path": "/b/20260101/n2/Data.db", "size": 9, "mtime": 1700000002},
        ],
        "192.0.2.51": [{"path": "/c/x", "size": 7, "mtime": 1700000000}],
    }
    looks = [{"backups": new}, {"msg": "one is growing", "details": {"backups": new}}, {"msg": "broken"}]
    answers = decide_all(
        "backup_ship", [{"__backup_ship_expected": look} for look in looks], "__backup_ship_expected_files"
    )
    assert [answer["__backup_ship_expected_files"] for answer in answers] == [wanted, wanted, {}]


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
        {"host": "192.0.2.51", **login, **there},
        {"path": "/local/*", "layout": "single"},
    ]
