# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The door to commands: what it refuses, what it hides, what it stops, and what it never starts twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import (
    CommandFailed,
    Refused,
    TemplateMissing,
    TimedOut,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import (
    HIDDEN,
    LocalRunner,
    Operations,
    fill_template,
    redact,
)

SECRET = "abcdef.0123456789abcdef"
ROOT = Path(__file__).resolve().parents[3]


def until(condition, seconds=120.0):
    """Await a condition; a test that waits for something that never happens fails here."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("the condition was not seen in time")
        time.sleep(0.02)


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [["sdkms-cluster", "reset", "\u2013-delete-data"], ["echo", "a\nb"], ["echo", "a\x00b"], ["echo", "\u201cx\u201d"]],
)
def test_what_a_copied_document_leaves_is_refused(argv):
    with pytest.raises(Refused) as caught:
        LocalRunner().run(argv)
    assert caught.value.code == "ARGV_NOT_ASCII"
    assert "copied" in caught.value.as_result()["remedy"]


@pytest.mark.parametrize("argv", [[], [""], ["echo", 3]])
def test_no_command_is_refused(argv):
    with pytest.raises(Refused) as caught:
        LocalRunner().run(argv)
    assert caught.value.code == "ARGV_INVALID"


def test_words_reach_the_command_as_words():
    done = LocalRunner().run([sys.executable, "-c", "import sys; print(sys.argv[1:])", "a b", "$HOME", "*", ";"])
    assert done.stdout.strip() == "['a b', '$HOME', '*', ';']"


def test_locale_is_c_and_standard_input_is_empty(monkeypatch):
    monkeypatch.setenv("LC_MESSAGES", "de_DE.UTF-8")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    code = (
        "import os,sys; print(os.environ['LC_ALL'], os.environ['LANG'], 'LC_MESSAGES' in os.environ, sys.stdin.read())"
    )
    assert LocalRunner().run([sys.executable, "-c", code]).stdout.split() == ["C", "C", "False"]


def test_environment_of_one_call_does_not_leak_into_the_next():
    runner = LocalRunner()
    code = "import os; print(os.environ.get('KUBECONFIG'))"
    assert runner.run([sys.executable, "-c", code], environ={"KUBECONFIG": "/x"}).stdout.strip() == "/x"
    assert runner.run([sys.executable, "-c", code]).stdout.strip() == "None"


def test_secrets_are_in_neither_result_nor_record_nor_error():
    runner = LocalRunner()
    with pytest.raises(CommandFailed) as caught:
        runner.run(["sh", "-c", f"echo {SECRET}; echo {SECRET} >&2; exit 3", f"--token={SECRET}"], secrets=[SECRET])
    everything = repr(caught.value.as_result()) + repr(runner.actions)
    assert SECRET not in everything
    assert f"--token={HIDDEN}" in everything
    assert runner.actions[0]["rc"] == 3


def test_a_secret_that_contains_another_one_is_hidden_whole():
    assert redact("password1 password", ["password", "password1"]) == f"{HIDDEN} {HIDDEN}"


def test_reading_leaves_no_action():
    runner = LocalRunner()
    runner.run(["true"], reading=True)
    runner.run(["true"])
    assert [action["argv"] for action in runner.actions] == [["true"]]


def test_a_missing_program_has_its_own_code():
    with pytest.raises(CommandFailed) as caught:
        LocalRunner().run(["sdkms-cluster-that-is-not-here"])
    assert caught.value.code == "TOOL_MISSING"


def test_the_whole_group_dies_on_a_timeout(tmp_path):
    pid_file = tmp_path / "pid"
    # It has time enough to begin, on a machine of any speed.
    for seconds in (0.5, 5, 50):
        with pytest.raises(TimedOut) as caught:
            LocalRunner().run(["sh", "-c", f"sleep 600 & echo $! > {pid_file}; echo begun; wait"], timeout=seconds)
        if caught.value.details["last_state"]["stdout"]:
            break
    assert caught.value.code == "COMMAND_TIMED_OUT"
    assert caught.value.details["last_state"]["stdout"] == "begun\n"
    child = int(pid_file.read_text())
    until(lambda: not _alive(child))


def test_a_process_that_left_the_group_does_not_hold_the_runner_up(tmp_path):
    pid_file = tmp_path / "pid"
    begun = time.monotonic()
    for seconds in (0.3, 3, 30):
        with pytest.raises(TimedOut):
            LocalRunner().run(["sh", "-c", f"setsid sleep 600 & echo $! > {pid_file}; sleep 600"], timeout=seconds)
        if pid_file.exists() and pid_file.read_text():
            break
    assert time.monotonic() - begun < 300
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


# -- templates ---------------------------------------------------------------------------------------------------------


def test_a_template_is_filled_word_by_word():
    filled = fill_template(["restore", "--from={archive}", "{archive}", "{.items}"], {"archive": "/a b/c"})
    assert filled == ["restore", "--from=/a b/c", "/a b/c", "{.items}"]


def test_values_are_not_templates_themselves():
    assert fill_template(["x", "{one}"], {"one": "{two}", "two": "no"}) == ["x", "{two}"]


@pytest.mark.parametrize("template", [None, []])
def test_a_missing_template_names_the_article(template):
    with pytest.raises(TemplateMissing) as caught:
        fill_template(template, {}, name="restore_steps", article="Restoration Guide")
    assert caught.value.code == "TEMPLATE_MISSING"
    assert caught.value.details["article"] == "Restoration Guide"
    assert "Restoration Guide" in caught.value.remedy


def test_unknown_and_unused_placeholders_are_told_at_once():
    with pytest.raises(Refused) as caught:
        fill_template(["x", "{archiv}"], {"archive": "/a"}, required=["archive"])
    assert caught.value.code == "TEMPLATE_PLACEHOLDER"
    assert "archiv" in caught.value.message and "not used: archive" in caught.value.message


# -- detached operations -----------------------------------------------------------------------------------------------


@pytest.fixture
def operations(tmp_path):
    return Operations(str(tmp_path / "operations"), "run-1", poll=0.02)


def counting(tmp_path, tail="exit 0"):
    """A command that leaves a line each time it is started."""
    return ["sh", "-c", f"echo started >> {tmp_path}/count; {tail}"]


def starts(tmp_path):
    path = tmp_path / "count"
    return path.read_text().count("started") if path.exists() else 0


def test_an_operation_reports_its_exit_code_and_output(operations, tmp_path):
    result = operations.start_or_attach("join", counting(tmp_path, "echo words; exit 7"), timeout=120)
    assert (result.rc, result.attached, result.running) == (7, False, False)
    assert result.output_tail == "words\n"
    assert operations.actions[0]["rc"] == 7


def test_a_second_call_attaches_to_the_running_operation(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 4")
    first = operations.start_or_attach("join", argv, timeout=120, wait=False)
    assert first.running and first.rc is None
    with pytest.raises(TimedOut) as caught:
        operations.start_or_attach("join", argv, timeout=0.2)
    assert caught.value.code == "OPERATION_RUNNING"
    (tmp_path / "go").touch()
    second = operations.start_or_attach("join", argv, timeout=120)
    assert (second.rc, second.attached) == (4, True)
    assert starts(tmp_path) == 1


def test_whoever_attaches_is_given_the_note_of_the_one_who_started(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    first = operations.start_or_attach("backup", argv, timeout=120, wait=False, note={"of": "the first"})
    (tmp_path / "go").touch()
    second = operations.start_or_attach("backup", argv, timeout=120, note={"of": "the second"})
    assert second.attached and first.note == second.note == operations.status("backup").note == {"of": "the first"}
    third = operations.start_or_attach("backup", argv, timeout=120, note={"of": "the third"})
    assert not third.attached and third.note == {"of": "the third"}
    assert operations.start_or_attach("backup", argv, timeout=120).note is None
    assert starts(tmp_path) == 3


def test_it_can_be_asked_whether_a_call_would_attach(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    assert not operations.would_attach("backup", argv)
    operations.start_or_attach("backup", argv, timeout=120, wait=False)
    assert operations.would_attach("backup", argv)
    with pytest.raises(Refused) as caught:
        operations.would_attach("backup", ["true"])
    assert caught.value.code == "OPERATION_CONFLICT"
    (tmp_path / "go").touch()
    until(lambda: not operations.status("backup").running)
    assert operations.would_attach("backup", argv) and not operations.would_attach("backup", ["true"])
    assert not operations.would_attach("backup", argv, report_within=-1.0)
    assert operations.start_or_attach("backup", argv, timeout=120).attached
    assert not operations.would_attach("backup", argv) and starts(tmp_path) == 1


def test_another_argv_under_the_same_name_is_refused_while_one_runs(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    operations.start_or_attach("remove", argv, timeout=120, wait=False)
    with pytest.raises(Refused) as caught:
        operations.start_or_attach("remove", ["true"], timeout=1)
    assert caught.value.code == "OPERATION_CONFLICT"
    (tmp_path / "go").touch()
    assert operations.start_or_attach("remove", argv, timeout=120).rc == 0


def test_an_end_that_was_reported_is_not_reported_again(operations, tmp_path):
    argv = counting(tmp_path)
    operations.start_or_attach("reset", argv, timeout=120)
    operations.start_or_attach("reset", argv, timeout=120)
    assert starts(tmp_path) == 2


def test_an_old_end_that_nobody_saw_is_not_taken_for_today(operations, tmp_path):
    argv = counting(tmp_path)
    operations.start_or_attach("reset", argv, timeout=120, wait=False)
    until(lambda: not operations.status("reset").running)
    result = operations.start_or_attach("reset", argv, timeout=120, report_within=-1.0)
    assert not result.attached
    assert starts(tmp_path) == 2


CALLER = """
import os, pathlib, sys, time
sys.path.insert(0, {tests!r})
import conftest
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import Operations
sleep, POLL = time.sleep, 0.0625

def noting(seconds):
    if seconds == POLL:
        pathlib.Path(f"{{{directory!r}}}-awaited-by-{{os.getpid()}}").touch()
    sleep(seconds)

time.sleep = noting
Operations({directory!r}, "run-1", poll=POLL).start_or_attach("create", {argv!r}, timeout=60, secrets={secrets!r})
"""


def killed_caller(directory, argv, secrets=(), when=lambda: True):
    """Starts an operation from a process of its own session, and kills that with signal 9 once ``when`` holds."""
    code = CALLER.format(tests=str(ROOT / "tests"), directory=str(directory), argv=argv, secrets=list(secrets))
    caller = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        until(when)
    finally:
        os.killpg(caller.pid, signal.SIGKILL)
        caller.wait()


def test_an_operation_survives_the_death_of_its_caller_and_finishes_once(tmp_path):
    argv = counting(
        tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo done >> {tmp_path}/done; exit 5"
    )
    killed_caller(tmp_path / "operations", argv, when=lambda: starts(tmp_path) == 1)
    operations = Operations(str(tmp_path / "operations"), "run-2", poll=0.02)
    assert operations.status("create").running
    (tmp_path / "go").touch()
    result = operations.start_or_attach("create", argv, timeout=120)
    assert (result.rc, result.attached) == (5, True)
    assert starts(tmp_path) == 1
    assert (tmp_path / "done").read_text() == "done\n"


def test_an_operation_that_ended_while_nobody_looked_is_reported_once(tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 6")
    killed_caller(tmp_path / "operations", argv, when=lambda: starts(tmp_path) == 1)
    operations = Operations(str(tmp_path / "operations"), "run-2", poll=0.02)
    (tmp_path / "go").touch()
    until(lambda: not operations.status("create").running)
    result = operations.start_or_attach("create", argv, timeout=120)
    assert (result.rc, result.attached) == (6, True)
    assert starts(tmp_path) == 1


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.3])
def test_killing_the_caller_at_any_moment_leaves_none_or_one(tmp_path, delay):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    begun = time.monotonic()
    killed_caller(tmp_path / "operations", argv, when=lambda: time.monotonic() - begun > delay)
    operations = Operations(str(tmp_path / "operations"), "run-2", poll=0.02)
    # Not before: what ended and was reported would be started anew.
    (tmp_path / "go").touch()
    assert operations.start_or_attach("create", argv, timeout=120).rc == 0
    assert starts(tmp_path) == 1


def test_two_callers_at_the_same_moment_start_it_once(tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    code = CALLER.format(tests=str(ROOT / "tests"), directory=str(tmp_path / "operations"), argv=argv, secrets=[])
    callers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    until(lambda: len(list(tmp_path.glob("operations-awaited-by-*"))) == 3)
    (tmp_path / "go").touch()
    assert [caller.wait(timeout=120) for caller in callers] == [0, 0, 0]
    assert starts(tmp_path) == 1


def test_a_supervisor_that_was_killed_leaves_an_end_without_exit_code(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    operations.start_or_attach("create", argv, timeout=120, wait=False)
    record = _record(operations, "create")
    os.kill(record["supervisor"][0], signal.SIGKILL)
    assert operations.status("create").running, "the command itself still runs"
    with pytest.raises(TimedOut):
        operations.start_or_attach("create", argv, timeout=0.1)
    assert starts(tmp_path) == 1
    (tmp_path / "go").touch()
    until(lambda: not operations.status("create").running)
    assert operations.status("create").rc is None
    assert operations.start_or_attach("create", argv, timeout=120).rc == 0
    assert starts(tmp_path) == 2


def test_a_record_of_an_earlier_boot_runs_no_more(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    operations.start_or_attach("create", argv, timeout=120, wait=False)
    path = Path(operations.directory) / "create" / "record.json"
    path.write_text(path.read_text().replace(_record(operations, "create")["boot"], "0" * 36))
    assert not operations.status("create").running
    (tmp_path / "go").touch()


def test_secrets_of_an_operation_are_nowhere_on_disk(operations, tmp_path):
    argv = counting(tmp_path, f"echo using {SECRET}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    argv.append(f"--token={SECRET}")
    pattern = r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"
    operations.start_or_attach("join", argv, timeout=120, secrets=[SECRET], patterns=[pattern], wait=False)
    until(lambda: "using" in operations.status("join").output_tail)
    assert SECRET not in repr(operations.status("join"))
    (tmp_path / "go").touch()
    argv[-1] = "--token=zzzzzz.0123456789abcdef"
    result = operations.start_or_attach(
        "join", [*argv[:2], argv[2], *argv[3:]], timeout=120, secrets=["zzzzzz.0123456789abcdef", SECRET]
    )
    assert result.attached, "another token is the same operation"
    for path in Path(operations.directory).rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
            assert path.stat().st_mode & 0o077 == 0, path
    assert Path(operations.directory, "join").stat().st_mode & 0o077 == 0


def test_output_of_a_run_whose_secret_is_unknown_is_not_shown_while_it_runs(operations, tmp_path):
    argv = counting(tmp_path, f"echo {SECRET}; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    operations.start_or_attach("join", argv, timeout=120, secrets=[SECRET], wait=False)
    raw = Path(operations.directory) / "join" / "output.raw"
    until(lambda: raw.stat().st_size > 0)
    assert operations.status("join").output_tail == ""
    (tmp_path / "go").touch()
    until(lambda: not operations.status("join").running)
    assert operations.status("join").output_tail == f"{HIDDEN}\n"


def test_a_program_that_is_missing_leaves_no_record(operations):
    with pytest.raises(CommandFailed) as caught:
        operations.start_or_attach("join", ["no-such-program-here"], timeout=5)
    assert caught.value.code == "TOOL_MISSING"
    assert operations.status("join") is None


def test_a_program_that_cannot_be_executed_leaves_no_record(operations, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with pytest.raises(CommandFailed) as caught:
        operations.start_or_attach("join", [str(program)], timeout=5)
    assert caught.value.code == "COMMAND_NOT_STARTED"
    assert operations.status("join") is None


def test_what_runs_is_found_by_its_name_and_by_the_beginning_of_it(operations):
    assert operations.running("restore") == []
    operations.start_or_attach("restore-01-load", ["sleep", "30"], timeout=5, wait=False)
    operations.start_or_attach("restorer", ["sleep", "30"], timeout=5, wait=False)
    try:
        assert operations.running("restore") == ["restore-01-load"]
        assert operations.running("restore-01-load") == ["restore-01-load"]
        assert operations.running("join") == []
    finally:
        for name in ("restore-01-load", "restorer"):
            record = json.loads(Path(operations.directory, name, "record.json").read_text())
            os.kill(record["child"][0], signal.SIGKILL)
    until(lambda: operations.running("restore") == [])


def test_forgetting_leaves_a_running_operation_alone(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    operations.start_or_attach("join", argv, timeout=120, wait=False)
    operations.forget("join")
    assert operations.status("join").running
    (tmp_path / "go").touch()
    operations.start_or_attach("join", argv, timeout=120)
    operations.forget("join")
    assert operations.status("join") is None


def test_operations_that_exclude_each_other_do_not_run_beside_each_other(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done")
    operations.start_or_attach("join", argv, timeout=120, wait=False)
    with pytest.raises(Refused) as caught:
        operations.start_or_attach("reset", ["true"], timeout=1, excludes=["create", "join"])
    assert caught.value.code == "OPERATION_CONFLICT"
    assert operations.status("reset") is None
    assert operations.start_or_attach("reset", ["true"], timeout=120, excludes=["create"]).rc == 0
    (tmp_path / "go").touch()
    operations.start_or_attach("join", argv, timeout=120)
    assert operations.start_or_attach("reset", ["true"], timeout=120, excludes=["join"]).rc == 0


def test_an_end_that_was_acknowledged_is_not_reported_again(operations, tmp_path):
    argv = counting(tmp_path, f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit 3")
    operations.start_or_attach("join", argv, timeout=120, wait=False)
    (tmp_path / "go").touch()  # not before: whoever starts it and sees its end at once reports it
    until(lambda: not operations.status("join").running)
    first, second = operations.acknowledge("join"), operations.acknowledge("join")
    assert (first.rc, first.reported, second.reported) == (3, False, True)
    assert [action["rc"] for action in operations.actions] == [3]
    assert starts(tmp_path) == 1
    assert operations.acknowledge("never") is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "x" * 65])
def test_names_are_no_paths(operations, name):
    with pytest.raises(Refused) as caught:
        operations.status(name)
    assert caught.value.code == "OPERATION_NAME"


def _record(operations, name):
    import json

    return json.loads((Path(operations.directory) / name / "record.json").read_text())


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
