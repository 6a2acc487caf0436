# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell of all modules: who this host is, and what leaves a module when something goes wrong."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from ansible.module_utils import basic

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _errors, _module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Reason, Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import HostIdentity, Outcome

HOST = HostIdentity("dr1", ["10.0.9.1", "fd00::1"], "S-1", "3.8.10", ("10.0.100.1",))
IP = (
    "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever\n"
    "1: lo    inet 10.0.100.1/32 scope global lo\\       valid_lft forever\n"
    "1: lo    inet6 ::1/128 scope host \\       valid_lft forever preferred_lft forever\n"
    "2: eth0    inet 10.0.9.1/24 brd 10.0.9.255 scope global eth0\\       valid_lft forever\n"
    "2: eth0    inet6 fd00::1/64 scope global \\       valid_lft forever preferred_lft forever\n"
    "2: eth0    inet6 fe80::5054:ff:fe12:3456/64 scope link \\       valid_lft forever preferred_lft forever\n"
)


def codes(reasons):
    return [reason.code for reason in reasons]


@pytest.mark.parametrize(
    ("confirm", "addresses", "serial", "expected"),
    [
        ("dr1", [], None, []),
        ("dr1", ["10.0.9.1"], "S-1", []),
        ("dr1", ["10.0.9.1/24", "fd00:0::1"], None, []),
        ("DR1", [], None, ["CONFIRM_MISMATCH"]),
        ("dr1.example.com", [], None, ["CONFIRM_MISMATCH"]),
        ("", [], None, ["CONFIRM_MISMATCH"]),
        (None, [], None, ["CONFIRM_MISMATCH"]),
        ("dr1", ["10.0.9.2"], None, ["ADDRESS_MISMATCH"]),
        ("dr1", ["10.0.9.1", "10.0.9.2"], None, ["ADDRESS_MISMATCH"]),
        ("dr1", ["10.0.100.1"], None, ["ADDRESS_MISMATCH"]),
        ("dr1", [], "S-2", ["SERIAL_MISMATCH"]),
        ("x", ["y"], "z", ["CONFIRM_MISMATCH", "ADDRESS_MISMATCH", "SERIAL_MISMATCH"]),
    ],
)
def test_who_this_is_not(confirm, addresses, serial, expected):
    assert codes(_module.identity_reasons(HOST, confirm, addresses, serial)) == expected


def test_a_serial_that_cannot_be_read_is_not_the_expected_one():
    nameless = HostIdentity("dr1", [], None, "3.8.10")
    assert codes(_module.identity_reasons(nameless, "dr1", [], "S-1")) == ["SERIAL_UNREADABLE"]
    assert _module.identity_reasons(nameless, "dr1", [], None) == []


class Runner:
    """Answers for this host; a program whose answer is None is missing."""

    def __init__(self, serial):
        self.actions = []
        self.serial = serial

    def run(self, argv, **options):
        assert options["reading"]
        if argv[0] == "ip":
            return mock.Mock(rc=0, stdout=IP)
        if self.serial is None:
            raise _errors.CommandFailed("missing", "TOOL_MISSING")
        return mock.Mock(rc=0, stdout=self.serial)


@pytest.mark.parametrize(
    ("printed", "serial"),
    [("S-1\n", "S-1"), ("# SMBIOS implementations newer than 3.2\nS-1\n", "S-1"), ("\n", None), (None, None)],
)
def test_host_identity(printed, serial):
    host = _module.Shell({}, runner=Runner(printed)).host_identity()
    assert (host.addresses, host.on_loopback, host.serial) == (["10.0.9.1", "fd00::1"], ("10.0.100.1",), serial)
    assert host.every_address == ["10.0.9.1", "fd00::1", "10.0.100.1"]


def test_the_wrong_host_is_told_everything_at_once(monkeypatch):
    monkeypatch.setattr(_module.socket, "gethostname", lambda: "dr1")
    shell = _module.Shell({}, runner=Runner("S-1"))
    assert shell.require_confirmed_host("dr1", ["10.0.9.1"], "S-1").name == "dr1"
    with pytest.raises(Refused) as caught:
        shell.require_confirmed_host("dr2", ["10.0.9.9"], "S-2")
    assert caught.value.code == "WRONG_HOST"
    assert len(caught.value.as_result()["reasons"]) == 3


def played(body, spec=None, **params):
    """Runs a body as a module would; returns its result and all that it printed."""
    arguments = {"ANSIBLE_MODULE_ARGS": dict(params, _ansible_check_mode=False)}
    patches = [mock.patch.object(basic, "_ANSIBLE_ARGS", json.dumps(arguments).encode())]
    if hasattr(basic, "_ANSIBLE_PROFILE"):
        patches.append(mock.patch.object(basic, "_ANSIBLE_PROFILE", "legacy"))
    with mock.patch.object(sys, "stdout", new_callable=io.StringIO) as out, pytest.raises(SystemExit):
        for patch in patches:
            patch.start()
        try:
            _module.run_module(spec or {}, body)
        finally:
            for patch in patches:
                patch.stop()
    return json.loads(out.getvalue()), out.getvalue()


def test_an_unexpected_error_shows_neither_traceback_nor_values():
    def body(shell):
        raise ValueError("the password is " + shell.params["secret"])

    result, text = played(body, {"secret": {"type": "str", "no_log": True}}, secret="hunter22")
    assert (result["error_code"], result["details"]["exception"]) == ("INTERNAL", "ValueError")
    assert result["details"]["where"].startswith("test_module.py:")
    assert "hunter22" not in text and "Traceback" not in text and "password is" not in text


def test_a_missing_permission_says_become():
    def body(shell):
        raise PermissionError(13, "denied", "/var/lib/etcd")

    result, _text = played(body)
    assert (result["error_code"], "become" in result["remedy"], "/var/lib/etcd" in result["msg"]) == (
        "NOT_PERMITTED",
        True,
        True,
    )


def test_a_refusal_carries_code_reasons_and_remedy():
    def body(shell):
        raise Refused("No.", "X", reasons=[Reason("A", "one", "do a"), Reason("B", "two", "do b", hard=False)], seen=1)

    result, _text = played(body)
    assert result["failed"] and result["error_code"] == "X"
    assert [reason["code"] for reason in result["reasons"]] == ["A", "B"]
    assert result["remedy"] == "do a do b"
    assert result["details"] == {"seen": 1}
    assert "A: one" in result["msg"] and "B: two (soft)" in result["msg"]


def test_difference_and_states_are_the_same_objects():
    result, _text = played(lambda shell: Outcome(True, {"a": 1}, {"a": 2}, extra="x"))
    assert (
        result["diff"]
        == {"before": result["before"], "after": result["after"]}
        == {"before": {"a": 1}, "after": {"a": 2}}
    )
    assert (result["changed"], result["extra"], result["actions"]) == (True, "x", [])


def test_what_only_reads_has_no_difference():
    result, _text = played(lambda shell: Outcome(False))
    assert "diff" not in result and result["before"] is None


# -- hard and soft -----------------------------------------------------------------------------------------------------

HARD, SOFT, OTHER = Reason("H", "h"), Reason("S", "s", hard=False), Reason("O", "o", hard=False)


@pytest.mark.parametrize(
    ("reasons", "accept", "code", "standing"),
    [
        ([HARD], [], "H", ["H"]),
        ([HARD], ["H"], "H", ["H"]),
        ([SOFT], [], "S", ["S"]),
        ([SOFT, HARD], ["S"], "H", ["H"]),
        ([SOFT, HARD], [], "H", ["S", "H"]),
        ([SOFT, OTHER], ["S"], "O", ["O"]),
        ([SOFT], ["s"], "S", ["S"]),
        ([SOFT], ["*"], "S", ["S"]),
    ],
)
def test_what_stands(reasons, accept, code, standing):
    with pytest.raises(Refused) as caught:
        _errors.refuse_unless_accepted(reasons, accept, "No.")
    assert caught.value.code == code
    assert [reason.code for reason in caught.value.reasons] == standing


@pytest.mark.parametrize(("reasons", "accept"), [([], []), ([], ["H"]), ([SOFT], ["S"]), ([SOFT, OTHER], ["O", "S"])])
def test_what_yields(reasons, accept):
    assert _errors.refuse_unless_accepted(reasons, accept, "No.") == reasons


def test_modules_import_nothing_that_a_node_lacks():
    """A DSM node has the standard library and what Ansible brings, nothing else."""
    tests = Path(__file__).resolve().parents[2]
    probe = (
        f"import sys; sys.path.insert(0, {str(tests)!r}); import conftest; "
        "from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _creating, _joining; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'yaml', 'paramiko', 'cryptography', 'requests'}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
