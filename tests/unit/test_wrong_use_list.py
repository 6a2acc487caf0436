# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of wrong uses that this project answers, and which tests hold each line. Nobody can drop one unseen.

Whoever adds a refusal that an operator may meet adds a line here.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MODULES, ROLES, LAB = "unit/modules/test_wrong_use.py", "unit/roles/test_wrong_use.py", "lab/test_wrong_use.py"
SHIPPING, REFUSALS = "integration/transfer/test_wrong_use.py", "integration/transfer/test_refusals.py"
#: Where the real site answers: a story, and the name under which its table has the line.
SITE = TESTS.parent / "molecule" / "wrong_use" / "converge.yml"

#: Line of the list -> tests that go red without the refusal, and how the story on the real site calls it (if it does).
LIST: dict[str, tuple[list[str], str]] = {
    "malformed token": ([f"{MODULES}::test_wrong_use_malformed_token"], "malformed token and a typographic dash"),
    "typographic dash": (
        [f"{MODULES}::test_wrong_use_typographic_dash", f"{MODULES}::test_wrong_use_typographic_dash_anywhere"],
        "malformed token and a typographic dash",
    ),
    "--self without mask": (
        [f"{MODULES}::test_wrong_use_self_without_mask"],
        "self without mask, no config.yaml, not isolated",
    ),
    "peer unreachable": ([f"{MODULES}::test_wrong_use_peer_unreachable"], "peer unreachable"),
    "peer not a member": ([f"{MODULES}::test_wrong_use_peer_not_a_member"], "peer not a member"),
    "peer equal to self": ([f"{MODULES}::test_wrong_use_peer_is_self"], "peer equal to self"),
    "host joined to another cluster": (
        [
            f"{MODULES}::test_wrong_use_host_joined_to_another_cluster",
            f"{MODULES}::test_wrong_use_leftovers_of_another_cluster",
            f"{MODULES}::test_wrong_use_create_on_a_member",
        ],
        "host joined to another cluster",
    ),
    "wrong host behind an inventory alias": (
        [
            f"{MODULES}::test_wrong_use_wrong_host_behind_an_alias",
            f"{MODULES}::test_wrong_use_host_that_is_another_one_when_it_comes_to_acting",
        ],
        "wrong host behind an alias",
    ),
    "DR host missing from the DR group": (
        [
            f"{MODULES}::test_wrong_use_host_that_is_not_declared_for_it",
            f"{ROLES}::test_wrong_use_dr_host_missing_from_the_inventory",
            f"{ROLES}::test_wrong_use_groups_that_a_playbook_runs_on_are_looked_at_first",
            f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once",
        ],
        "Prepare a host that is not declared for it, confirmed for another",
    ),
    "confirm missing": (
        [f"{MODULES}::test_wrong_use_confirm_missing", f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once"],
        "",
    ),
    "confirm naming another host": (
        [
            f"{MODULES}::test_wrong_use_confirm_names_another_host",
            f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once",
        ],
        "Prepare a host that is not declared for it, confirmed for another",
    ),
    "reset of a member, its own control plane": (
        [
            f"{MODULES}::test_wrong_use_reset_of_a_member_its_own_control_plane_lists_it",
            f"{MODULES}::test_wrong_use_reset_of_a_member_its_control_plane_is_silent",
        ],
        "reset while its own control plane lists it",
    ),
    "reset of a member, its own service": (
        [f"{MODULES}::test_wrong_use_reset_of_a_member_its_own_service_answers"],
        "reset while its own service answers",
    ),
    "reset of a member, any other member": (
        [
            f"{MODULES}::test_wrong_use_reset_of_a_member_one_witness_lists_it",
            f"{MODULES}::test_wrong_use_reset_of_a_member_too_few_are_heard",
            f"{MODULES}::test_wrong_use_reset_of_a_member_everything_speaks_against_it",
            f"{MODULES}::test_wrong_use_reset_of_a_member_whatever_the_cause",
        ],
        "reset while the other member lists it",
    ),
    "version mismatch": (
        [
            f"{MODULES}::test_wrong_use_version_mismatch_of_a_join",
            f"{MODULES}::test_wrong_use_version_mismatch_of_a_restore",
        ],
        "another release and nobody knew",
    ),
    "token expired between create and join": (
        [f"{MODULES}::test_wrong_use_token_expired_between_create_and_join"],
        "token that ended and nobody knew",
    ),
    "missing config.yaml": (
        [f"{MODULES}::test_wrong_use_missing_config", f"{MODULES}::test_wrong_use_missing_config_to_be_edited"],
        "self without mask, no config.yaml, not isolated",
    ),
    "tabs or duplicate keys in config.yaml": (
        [
            f"{MODULES}::test_wrong_use_tabs_or_duplicate_keys_in_config",
            f"{MODULES}::test_wrong_use_tabs_or_duplicate_keys_in_config_to_be_edited",
        ],
        "",
    ),
    "backup without auditBackup when audit logs are excluded": (
        [f"{MODULES}::test_wrong_use_backup_without_audit_backup"],
        "",
    ),
    "password in a world-readable file": (
        [
            f"{MODULES}::test_wrong_use_password_in_a_world_readable_file",
            f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once",
        ],
        "",
    ),
    "empty, truncated or growing backup": (
        [
            f"{SHIPPING}::test_wrong_use_empty_truncated_and_growing_backup",
            f"{MODULES}::test_wrong_use_empty_backup_is_not_restored",
            f"{MODULES}::test_wrong_use_backup_that_is_not_what_was_verified_is_not_restored",
        ],
        "empty, truncated and growing backup",
    ),
    "foreign backup": (
        [
            f"{SHIPPING}::test_wrong_use_foreign_backup",
            f"{MODULES}::test_wrong_use_foreign_backup_is_not_restored",
        ],
        "foreign backup",
    ),
    "store full": (
        [f"{SHIPPING}::test_wrong_use_store_full", f"{SHIPPING}::test_wrong_use_store_full_to_the_last_byte"],
        "store full",
    ),
    "store of another cluster": (
        [f"{SHIPPING}::test_wrong_use_store_of_another_cluster"],
        "store of another cluster",
    ),
    "SSH refused": (
        [
            f"{SHIPPING}::test_wrong_use_ssh_refused",
            f"{SHIPPING}::test_wrong_use_several_sources_are_told_at_once",
        ],
        "SSH refused",
    ),
    "host key changed": ([f"{SHIPPING}::test_wrong_use_host_key_changed"], "host key changed"),
    "no paramiko": ([f"{SHIPPING}::test_wrong_use_no_paramiko_or_python_too_old"], "no paramiko"),
    "Python too old": (
        [
            f"{SHIPPING}::test_wrong_use_no_paramiko_or_python_too_old",
            f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once",
        ],
        "",
    ),
    "rate 0 or negative": (
        [
            f"{SHIPPING}::test_wrong_use_rate_and_workers",
            f"{REFUSALS}::test_wrong_use_all_bad_options_are_told_at_once",
        ],
        "",
    ),
    "workers 0 or 100": (
        [f"{SHIPPING}::test_wrong_use_rate_and_workers", f"{REFUSALS}::test_wrong_use_options_that_cannot_be_meant"],
        "",
    ),
    "source empty": (
        [
            f"{SHIPPING}::test_wrong_use_source_that_is_empty_absent_or_the_store",
            f"{REFUSALS}::test_wrong_use_a_source_without_backups",
            f"{REFUSALS}::test_wrong_use_an_empty_directory",
        ],
        "",
    ),
    "source with a device": (
        [
            f"{SHIPPING}::test_wrong_use_source_of_odd_things_and_names",
            f"{REFUSALS}::test_wrong_use_a_device_among_many_files",
        ],
        "",
    ),
    "source with a symlink out of the tree": (
        [
            f"{SHIPPING}::test_wrong_use_source_of_odd_things_and_names",
            f"{REFUSALS}::test_wrong_use_odd_things_in_a_backup_are_all_told",
        ],
        "",
    ),
    "path with spaces, newline, leading dash or non-UTF-8 bytes": (
        [
            f"{SHIPPING}::test_wrong_use_source_of_odd_things_and_names",
            f"{REFUSALS}::test_wrong_use_names_with_spaces_and_dashes_do_no_harm",
            f"{REFUSALS}::test_wrong_use_paths_that_cannot_be_used",
            f"{REFUSALS}::test_wrong_use_odd_things_in_a_backup_are_all_told",
        ],
        "",
    ),
    "destination inside source": (
        [
            f"{SHIPPING}::test_wrong_use_source_that_is_empty_absent_or_the_store",
            f"{REFUSALS}::test_wrong_use_the_source_is_the_store",
        ],
        "",
    ),
    "unreadable file among many": ([f"{REFUSALS}::test_wrong_use_one_unreadable_file_among_many"], ""),
    "key with wrong permissions": (
        [
            f"{SHIPPING}::test_wrong_use_key_permissions_passphrase_and_unknown_host",
            f"{REFUSALS}::test_wrong_use_a_key_that_others_may_read",
            f"{REFUSALS}::test_wrong_use_a_key_that_is_none",
        ],
        "",
    ),
    "passphrase missing": (
        [
            f"{SHIPPING}::test_wrong_use_key_permissions_passphrase_and_unknown_host",
            f"{REFUSALS}::test_wrong_use_a_passphrase_missing_or_wrong",
        ],
        "",
    ),
    "unknown host": (
        [
            f"{SHIPPING}::test_wrong_use_key_permissions_passphrase_and_unknown_host",
            f"{REFUSALS}::test_wrong_use_f16_an_unknown_host_is_told_its_fingerprint",
        ],
        "",
    ),
    "SFTP subsystem absent": (
        [
            f"{SHIPPING}::test_wrong_use_no_sftp_at_the_source",
            f"{REFUSALS}::test_wrong_use_no_sftp_subsystem",
            f"{REFUSALS}::test_wrong_use_a_subsystem_that_only_talks",
        ],
        "",
    ),
    "quota exceeded": ([f"{REFUSALS}::test_wrong_use_quota_exceeded"], ""),
    "keep: 0": (["unit/transfer/test_prune.py::test_wrong_use_removes_nothing"], ""),
    "missing template": (
        [
            f"{MODULES}::test_wrong_use_missing_template",
            f"{MODULES}::test_wrong_use_missing_template_beside_other_reasons",
            f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once",
        ],
        "",
    ),
    "lab not running": ([f"{LAB}::test_wrong_use_lab_not_running"], ""),
    "lab already running": (
        [
            f"{LAB}::test_wrong_use_lab_already_running",
            f"{LAB}::test_wrong_use_lab_already_running_for_a_rehearsal",
            f"{LAB}::test_wrong_use_lab_already_running_for_a_story",
        ],
        "",
    ),
    "not root": (
        [
            f"{LAB}::test_wrong_use_not_root",
            f"{LAB}::test_wrong_use_not_root_for_a_rehearsal",
            "lab/test_requirements.py::test_a_machine_that_cannot_carry_the_lab_hears_every_reason_at_once",
            f"{MODULES}::test_wrong_use_not_root",
        ],
        "",
    ),
    "unsupported Python": (
        [
            f"{LAB}::test_wrong_use_unsupported_python_for_make",
            f"{LAB}::test_wrong_use_unsupported_python_for_a_rehearsal",
        ],
        "",
    ),
    "unsupported ansible-core": (
        [
            f"{MODULES}::test_wrong_use_unsupported_ansible_core",
            f"{ROLES}::test_wrong_use_told_by_preflight_all_at_once",
        ],
        "",
    ),
}


def functions_in(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("line", LIST)
def test_each_line_is_held(line: str) -> None:
    tests, on_site = LIST[line]
    missing = [one for one in tests if one.split("::")[1] not in functions_in(one.split("::")[0])]
    assert tests and missing == []
    assert on_site in SITE.read_text(encoding="utf-8")
