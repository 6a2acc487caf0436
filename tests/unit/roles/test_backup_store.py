# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drop box and timers of the store: what is made when, what is refused, and what sshd and systemd make of the files."""

from __future__ import annotations

import base64
import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles" / "backup_store"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAtest dsm delivers"
INCLUDES = "# Debian\n\nInclude /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n"
DROP = {
    "backup_store_drop_user": "dsmdrop",
    "backup_store_drop_path": "/srv/dsm-drop",
    "__backup_store_drop_keys_file": "/etc/ssh/kmsops-drop-box.keys",
}
CONFINED = (ROLE / "templates" / "drop_box.conf.j2").read_text(encoding="utf-8")
for name, value in DROP.items():
    CONFINED = CONFINED.replace("{{ " + name + " }}", value)


def encoded(*texts):
    return {"results": [{"content": base64.b64encode(text.encode()).decode()} if text else {} for text in texts]}


def seen(root, incoming):
    return {"results": [{"stat": dict(stat)} for stat in (root, incoming)]}


NOT_THERE = {"exists": False}
STORE = {
    "backup_store_path": "/srv/dsm-store",
    "backup_store_etc": "/etc/kmsops",
    "backup_store_venv": "/opt/kmsops/store-venv",
    "backup_store_key_file": "/etc/kmsops/pull_ed25519",
    "backup_store_known_hosts": "/etc/kmsops/known_hosts",
    "backup_store_wheelhouse": "",
    "backup_store_metrics": "/var/lib/node_exporter/dsm.prom",
    "backup_store_authorize": True,
    "backup_store_sources": [{"path": "/srv/dsm-drop/incoming/*"}],
    "backup_store_drop_user": "",
    "backup_store_drop_state": "present",
    "backup_store_drop_path": "/srv/dsm-drop",
    "backup_store_drop_keys": [KEY],
    "backup_store_second": False,
    "backup_store_timers": [],
    "backup_store_leave_timers": False,
    "backup_store_requirements": "requirements.txt",
    "backup_store_timer_requirements": "timers.txt",
    "backup_store_timer_variables": {},
    "backup_store_timer_spread": 300,
    "backup_store_timer_on_failure": "",
    "__backup_store_seen": {"results": []},
    "__backup_store_paramiko": {"rc": 0},
    "__backup_store_key": {"rc": 0, "stdout": "ssh-ed25519 AAAA pull"},
    "role_path": str(ROLE),
    "__backup_store_found_units": {"files": []},
}
BOX = {
    "backup_store_drop_user": "dsmdrop",
    "__backup_store_drop_account": {"rc": 0, "stdout": "dsmdrop:x:998:998::/srv/dsm-drop:/usr/sbin/nologin"},
    "__backup_store_drop_told": encoded(CONFINED, KEY + "\n", INCLUDES),
    "__backup_store_drop_seen": seen(
        {"exists": True, "mode": "0755", "uid": 0}, {"exists": True, "mode": "0700", "pw_name": "dsmdrop"}
    ),
    "__backup_store_sshd": {"rc": 0},
}
NO_BOX = {
    **BOX,
    "__backup_store_drop_account": {"rc": 2, "stdout": ""},
    "__backup_store_drop_told": encoded("", "", INCLUDES),
    "__backup_store_drop_seen": seen(NOT_THERE, NOT_THERE),
}
SHIP, VERIFY = {"job": "ship", "calendar": "*-*-* *:20:00"}, {"job": "verify", "calendar": "*-*-* 02:30:00"}
FILE = {"path": "/etc/systemd/system/kmsops-store-ship.timer", "content": "[Timer]\n"}
AWAKE = ["UnitFileState=enabled", "ActiveState=active"]


def timed(*timers, rc=0, states=AWAKE, told="[Timer]\n", whole=True):
    told = {"content": base64.b64encode(told.encode()).decode(), "__backup_store_timer_file": FILE}
    return {
        "backup_store_timers": list(timers),
        "__backup_store_calendars": {"results": [{"rc": rc, "__backup_store_timer": timer} for timer in timers]},
        "__backup_store_running": {
            "results": [{"stdout_lines": states, "__backup_store_timer": timer} for timer in timers]
        },
        "__backup_store_collection": {"stat": {"exists": whole}},
        "__backup_store_timer_told": {"results": [told]},
    }


def units(*names):
    return {"__backup_store_found_units": {"files": [{"path": f"/etc/systemd/system/{name}"} for name in names]}}


CASES = {
    "neither is wanted": ({}, [], []),
    "the box is there": (BOX, [], []),
    "there is no box yet": (NO_BOX, ["drop_box"], []),
    "killed before the account was made": (
        {**BOX, "__backup_store_drop_account": {"rc": 2, "stdout": ""}},
        ["drop_box"],
        [],
    ),
    "another key may deliver now": ({**BOX, "backup_store_drop_keys": [KEY, KEY + "2"]}, ["drop_box"], []),
    "somebody lets sshd forget it": (
        {**BOX, "__backup_store_drop_told": encoded("", KEY + "\n", INCLUDES)},
        ["drop_box"],
        [],
    ),
    "its root is writable for its account": (
        {
            **BOX,
            "__backup_store_drop_seen": seen(
                {"exists": True, "mode": "0755", "uid": 998}, {"exists": True, "mode": "0700", "pw_name": "dsmdrop"}
            ),
        },
        ["drop_box"],
        [],
    ),
    "the box goes": ({**BOX, "backup_store_drop_state": "absent"}, ["no_drop_box"], []),
    "the box went, but for one file": (
        {**NO_BOX, "backup_store_drop_state": "absent", "__backup_store_drop_told": encoded(CONFINED, "", INCLUDES)},
        ["no_drop_box"],
        [],
    ),
    "the box is gone": ({**NO_BOX, "backup_store_drop_state": "absent"}, [], []),
    "a person's account": (
        {**BOX, "__backup_store_drop_account": {"rc": 0, "stdout": "dsmdrop:x:1000:1000::/home/dsmdrop:/bin/bash"}},
        ["drop_box"],
        ["DROP_USER_TAKEN"],
    ),
    "a person's account is not removed either": (
        {
            **BOX,
            "backup_store_drop_state": "absent",
            "__backup_store_drop_account": {"rc": 0, "stdout": "dsmdrop:x:1000:1000::/home/dsmdrop:/bin/bash"},
        },
        ["no_drop_box"],
        ["DROP_USER_TAKEN"],
    ),
    "everything is wrong with the box": (
        {
            **NO_BOX,
            "backup_store_drop_user": "Root *",
            "backup_store_drop_path": "/srv/dsm-store/drop",
            "backup_store_drop_keys": ['command="x" ' + KEY],
            "__backup_store_drop_told": encoded("", "", "#Include /etc/ssh/sshd_config.d/*.conf\n"),
            "__backup_store_sshd": {"rc": 255, "stderr": "line 3: Bad configuration option"},
        },
        ["drop_box"],
        ["DROP_USER_BAD", "DROP_PATH_BAD", "DROP_KEY_BAD", "SSHD_INCLUDES_NOTHING", "SSHD_BROKEN"],
    ),
    "timers run": ({**timed(SHIP, VERIFY), **units("kmsops-store-ship.timer", "kmsops-store-verify.service")}, [], []),
    "timers were never made": (timed(SHIP, told="", whole=False, states=["ActiveState=inactive"]), ["timers"], []),
    "killed before they were started": (timed(SHIP, states=["ActiveState=inactive", AWAKE[0]]), ["timers"], []),
    "the collection is a newer one": (timed(SHIP, whole=False), ["timers"], []),
    "another time": (timed(SHIP, told="[Timer]\nOnCalendar=daily\n"), ["timers"], []),
    "one is not wanted any more": ({**timed(SHIP), **units("kmsops-store-prune.timer")}, ["no_timers"], []),
    "none is wanted any more": (units("kmsops-store-ship.timer", "kmsops-store-ship.service"), ["no_timers"], []),
    "everything is wrong with the timers": (
        {**timed(SHIP, SHIP, rc=1), "backup_store_sources": []},
        [],
        ["TIMER_BAD_TIME", "TIMER_TWICE", "SOURCE_MISSING"],
    ),
    "a second store ships nothing": ({**timed(SHIP), "backup_store_second": True}, [], ["TIMER_NOT_HERE"]),
    "a first store follows none": (timed(dict(SHIP, job="replicate")), [], ["TIMER_NOT_HERE"]),
    "a store that ships is no second one": (
        {**units("kmsops-store-ship.timer"), "backup_store_second": True},
        ["no_timers"],
        ["FIRST_STORE"],
    ),
    "a store that is repaired goes on shipping": (
        {**units("kmsops-store-ship.timer"), "backup_store_second": True, "backup_store_leave_timers": True},
        [],
        [],
    ),
    "no wheel is there": (
        {"__backup_store_paramiko": {"rc": 1}, "backup_store_wheelhouse": "/nonexistent"},
        ["python"],
        ["WHEELHOUSE_EMPTY"],
    ),
    "no wheels of timers are there": (
        {**timed(SHIP), "__backup_store_paramiko": {"rc": 1}, "backup_store_wheelhouse": "WHEELS"},
        ["python"],
        ["WHEELHOUSE_EMPTY"],
    ),
    "without timers they are not missed": (
        {"__backup_store_paramiko": {"rc": 1}, "backup_store_wheelhouse": "WHEELS"},
        ["python"],
        [],
    ),
}


def test_the_plan_and_the_reasons_for_a_drop_box_and_for_timers(decide_all, tmp_path):
    (tmp_path / "paramiko-5.1.0-py3-none-any.whl").touch()
    inputs = [{**STORE, **changes} for changes, _plan, _codes in CASES.values()]
    for one in inputs:
        one["backup_store_wheelhouse"] = one["backup_store_wheelhouse"].replace("WHEELS", str(tmp_path))
    answers = decide_all("backup_store", inputs, "__backup_store_plan_steps", "__backup_store_checks")
    found = {}
    for name, answer in zip(CASES, answers):
        plan = [step["name"] for step in answer["__backup_store_plan_steps"] if step["needed"]]
        refused = [check for check in answer["__backup_store_checks"] if check["refuse"]]
        assert all(check["message"] and check["remedy"] for check in refused)
        found[name] = (plan, [check["code"] for check in refused])
    assert found == {name: (plan, codes) for name, (_changes, plan, codes) in CASES.items()}


SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine")
def test_sshd_confines_the_account_of_the_drop_box_and_nobody_else(tmp_path):
    if os.geteuid() == 0:
        pathlib.Path("/run/sshd").mkdir(
            exist_ok=True
        )  # a daemon that root asks something wants it, and no daemon ever ran here
    key = tmp_path / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    drop = tmp_path / "drop_box.conf"
    drop.write_text(CONFINED, encoding="utf-8")
    main = tmp_path / "sshd_config"
    main.write_text(f"HostKey {key}\nInclude {drop}\nSubsystem sftp internal-sftp\n", encoding="utf-8")

    def effective(user):
        asked = [SSHD, "-T", "-f", str(main), "-C", f"user={user},host=localhost,addr=127.0.0.1"]
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
        return dict(line.split(" ", 1) for line in lines if " " in line)

    confined, other = effective("dsmdrop"), effective("administrator")
    assert confined["chrootdirectory"] == "/srv/dsm-drop" and other["chrootdirectory"] == "none"
    assert confined["forcecommand"] == "internal-sftp -d /incoming -u 0077" and other["forcecommand"] == "none"
    assert confined["authorizedkeysfile"] == "/etc/ssh/kmsops-drop-box.keys"
    assert confined["authenticationmethods"] == "publickey"
    forwarding = [f"allow{what}forwarding" for what in ("tcp", "agent", "streamlocal")]
    others = ["passwordauthentication", "kbdinteractiveauthentication", "permittty", "permittunnel", "x11forwarding"]
    assert {confined[name] for name in (*forwarding, *others, "permituserrc")} == {"no"}
    assert other["passwordauthentication"] == other["allowtcpforwarding"] == "yes"


JOBS = ("ship", "replicate", "verify", "prune")


def rendered(decide_all, tmp_path, **changes):
    """What systemd and a run on a timer would read: by name, as the role renders it."""
    timers = [{"job": job, "calendar": f"*-*-* 0{hour}:30:00"} for hour, job in enumerate(JOBS)]
    task = yaml.safe_load((ROLE / "tasks" / "look_at_timers.yml").read_text(encoding="utf-8"))[-2]
    files = task["vars"]["__backup_store_rendered"]
    inputs = {**STORE, "backup_store_timers": timers, "files": files, "__backup_store_packed": {"stdout": "f" * 64}}
    answer = decide_all("backup_store", [{**inputs, **changes}], "files")[0]["files"]
    return {pathlib.Path(file["path"]).name: file["content"] for file in answer}


def test_systemd_understands_the_units_and_they_may_do_little(decide_all, tmp_path):
    source = {"name": "landing", "address": "192.0.2.50", "user": "dsmbackup", "path": "/b/*"}
    files = rendered(
        decide_all,
        tmp_path,
        backup_store_sources=[source, {"path": "/srv/dsm-drop/incoming/*"}],
        backup_store_timer_on_failure="call-somebody.service",
        dsm_keep=7,
        dsm_verify_slice="auto/7",
        dsm_accept=["UNVERIFIED"],
        dsm_api_key="secret",
    )
    inventory = yaml.safe_load(files.pop("timers.yml"))["dsm_store"]["hosts"]["this-store"]
    assert inventory == {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/opt/kmsops/store-venv/bin/python3",
        "dsm_keep": 7,
        "dsm_pull_sources": [
            {"name": "landing", "address": "192.0.2.50", "user": "dsmbackup", "path": "/b/*"},
            {"path": "/srv/dsm-drop/incoming/*"},
        ],
        "dsm_store_key_file": "/etc/kmsops/pull_ed25519",
        "dsm_store_known_hosts": "/etc/kmsops/known_hosts",
        "dsm_store_metrics": "/var/lib/node_exporter/dsm.prom",
        "dsm_store_path": "/srv/dsm-store",
        "dsm_store_python": "/opt/kmsops/store-venv/bin/python3",
        "dsm_verify_slice": "auto/7",
    }
    settings = configparser.ConfigParser()
    settings.read_string(files.pop("timers.cfg"))
    assert settings["defaults"]["collections_path"] == f"/opt/kmsops/collections-{'f' * 16}"
    assert settings["defaults"]["inventory"] == "/etc/kmsops/timers.yml"
    assert sorted(files) == sorted(f"kmsops-store-{job}.{kind}" for job in JOBS for kind in ("service", "timer"))
    for name, text in files.items():
        lines = text.splitlines()
        if name.endswith(".timer"):
            assert {"Persistent=true", "RandomizedDelaySec=300", "WantedBy=timers.target"} <= set(lines)
            assert [line for line in lines if line.startswith("OnCalendar=") and line.endswith(":30:00 UTC")]
            continue
        wanted = {"NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "PrivateDevices=yes", "LimitCORE=0"}
        assert {*wanted, "ReadWritePaths=/srv/dsm-store -/var/lib/node_exporter"} <= set(lines)
        assert "OnFailure=call-somebody.service" in lines
        assert ("PrivateNetwork=yes" in lines) is ("ship" not in name and "replicate" not in name)
        assert ("/usr/bin/flock" in text) is ("verify" not in name)
        playbook = next(line for line in lines if line.startswith("ExecStart=")).rpartition(".")[2]
        assert (ROLE.parents[1] / "playbooks" / f"{playbook}.yml").exists()
    if shutil.which("systemd-analyze"):
        # What it starts, and what it starts after a failure, need not be on this machine.
        for name, text in files.items():
            here = text.replace("/opt/kmsops/store-venv/bin/ansible-playbook", "/usr/bin/env")
            (tmp_path / name).write_text(here.replace("OnFailure=call-somebody.service\n", ""), encoding="utf-8")
        paths = [str(tmp_path / name) for name in sorted(files)]
        done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False)
        assert [line for line in done.stderr.splitlines() if "kmsops-store" in line] == []


def test_a_collection_is_packed_whole_and_the_same_everywhere(tmp_path):
    place = tmp_path / "here"
    for name in ("galaxy.yml", "plugins/_core/a.py", "roles/r/tasks/main.yml", "playbooks/p.yml", "tests/t.py"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name, encoding="utf-8")
    (place / "plugins" / "__pycache__").mkdir()
    (place / "plugins" / ".mypy_cache").mkdir()
    (place / "plugins" / ".mypy_cache" / "x").write_text("x", encoding="utf-8")
    (place / "plugins" / "__pycache__" / "a.pyc").write_text("x", encoding="utf-8")
    copy = tmp_path / "there"
    shutil.copytree(place, copy)
    os.utime(copy / "galaxy.yml", (1.0, 1.0))

    def pack(*argv):
        argv = [sys.executable, str(ROLE / "files" / "pack.py"), *map(str, argv)]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    digest = pack(place).stdout
    assert len(digest.strip()) == 64 and pack(place, tmp_path / "1.tar").stdout == pack(copy, tmp_path / "2.tar").stdout
    assert pack(copy).stdout == digest
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with tarfile.open(tmp_path / "1.tar") as tar:
        found = tar.getnames()
    assert found == ["galaxy.yml", "playbooks/p.yml", "plugins/_core/a.py", "roles/r/tasks/main.yml"]
    (copy / "plugins" / "_core" / "a.py").write_text("other", encoding="utf-8")
    assert pack(copy).stdout != digest
    assert pack(copy / "plugins").returncode != 0
