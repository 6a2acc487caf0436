# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of a trial: production's own, with nothing in it that leads to production's backups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.config_text import ConfigTextError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.derived_config import derive, derived_reasons

HEAD = "# settings\ncluster:\n  name: acme   # kept\n  opaque: {a: [1, 2]}\n"
SCP = '  scp:\n    server_ip: 192.0.2.50\n    username: dsm\n    password: "x y"\n    path: /srv/backup\n'
BACKUP = 'backup:\n  cron_schedule: "10 * * * *"\n  backup_mode: snapshot\n' + SCP
AUDIT = 'auditBackup:\n  cron_schedule: "0 * * * *"\n' + SCP.replace("/srv/backup", "/srv/audit")
TAIL = "attestation:\n  mode: x\n"


def codes(reasons):
    return [(reason.code, reason.hard) for reason in reasons]


def test_backups_are_taken_out_and_the_rest_is_kept_byte_for_byte():
    derived = derive(HEAD + BACKUP + TAIL + AUDIT, None)
    assert derived.text == HEAD + TAIL
    assert (derived.removed, derived.redirected) == (("backup", "auditBackup"), ())


def test_backups_are_led_to_the_run_s_own_directory():
    derived = derive(HEAD + BACKUP + AUDIT, "/srv/drills/r1")
    assert derived.text == (HEAD + BACKUP + AUDIT).replace("/srv/backup", "/srv/drills/r1/backup").replace(
        "/srv/audit", "/srv/drills/r1/auditBackup"
    )
    assert (derived.removed, derived.redirected) == ((), ("backup", "auditBackup"))


@pytest.mark.parametrize("extra", ["  s3:\n    bucket: prod\n", "  mystery: 1\n"])
def test_a_way_of_delivery_that_is_not_known_is_taken_out_even_then(extra):
    derived = derive(BACKUP + extra, "/srv/drills/r1")
    assert derived.removed == ("backup",) and "prod" not in derived.text


def test_a_backup_that_stays_local_is_taken_out():
    assert derive('backup:\n  cron_schedule: "1 * * * *"\n', "/srv/drills/r1").removed == ("backup",)


def test_a_file_without_backups_is_itself():
    assert derive(HEAD, "/x").text == HEAD


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", BACKUP + BACKUP, "backup: {cron: 1}\n", "backup: &a\n  b: 1\n"])
def test_what_cannot_be_read_without_guessing_is_an_error(text):
    with pytest.raises(ConfigTextError):
        derive(text, None)


@pytest.mark.parametrize(
    ("text", "drop", "forbidden", "expected"),
    [
        (HEAD + BACKUP, None, ["/srv/backup"], []),
        (HEAD + BACKUP, "/srv/drills/r1", ["/srv/backup"], []),
        (HEAD + "# was /srv/backup once\n" + BACKUP, None, ["/srv/backup"], []),
        (HEAD + "other:\n  place: /srv/backup\n", None, ["/srv/backup"], [("FORBIDDEN_PATH", True)]),
        (HEAD + BACKUP, "/srv/backup/drill", ["/srv/backup"], [("FORBIDDEN_PATH", True)]),
        (HEAD + BACKUP, "/srv/backup", ["/srv/backup/"], [("FORBIDDEN_PATH", True)]),
        (HEAD, "/srv/backup/x", ["/srv/backup"], [("FORBIDDEN_PATH", True)]),
        (HEAD + "s3Backup:\n  bucket: x\n", None, [], [("BACKUP_KEY_UNKNOWN", False)]),
        (HEAD, None, ["", "/"], []),
    ],
)
def test_paths_of_production(text, drop, forbidden, expected):
    assert codes(derived_reasons(derive(text, drop), drop, forbidden)) == expected


@given(st.permutations(["head", "backup", "audit", "tail"]), st.sampled_from([None, "/srv/drills/r1"]))
def test_in_any_order_no_place_of_production_is_left(order, drop):
    parts = {"head": HEAD, "backup": BACKUP, "audit": AUDIT, "tail": TAIL}
    derived = derive("".join(parts[name] for name in order), drop)
    assert "path: /srv/backup" not in derived.text and "path: /srv/audit" not in derived.text
    assert "name: acme   # kept" in derived.text and "mode: x" in derived.text
