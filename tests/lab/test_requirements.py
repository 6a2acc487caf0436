# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is told that lacks something: everything that is wrong at once, and what to do."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
Machine = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Runs a script of the checkout on a machine whose named commands answer as given."""

    def run(script: str, *arguments: str, **answers: str) -> subprocess.CompletedProcess[str]:
        commands = tmp_path / "commands"
        commands.mkdir(exist_ok=True)
        for name, body in answers.items():
            command = commands / name.replace("_", "-")
            command.write_text(f"#!/bin/sh\n{body}\n", encoding="ascii")
            command.chmod(0o755)
        return subprocess.run(
            [str(CHECKOUT / script), *arguments],
            capture_output=True,
            text=True,
            env={
                "PATH": f"{commands}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "MAKE": str(commands / "make"),
                "KMSOPS_LAB_STATE": str(tmp_path / "lab"),
            },
            check=False,
        )

    return run


def test_a_machine_that_cannot_carry_the_lab_hears_every_reason_at_once(machine: Machine) -> None:
    done = machine(
        "requirements/machine", "rehearsal",
        uname="echo Linux aarch64", id="echo 1000", df="printf 'Avail\\n300\\n'",
    )  # fmt: skip
    assert done.returncode == 1
    assert "this is Linux aarch64" in done.stderr
    assert "only root may" in done.stderr and "sudo make rehearsal" in done.stderr
    assert "300 MiB free; this needs 8 GiB" in done.stderr
    assert done.stderr.count("What to do:") == 3


def test_a_root_who_may_not_make_namespaces_is_told_where_he_is(machine: Machine) -> None:
    done = machine(
        "requirements/machine", "test",
        uname="echo Linux x86_64", id="echo 0", df="printf 'Avail\\n99999\\n'", unshare="exit 1",
    )  # fmt: skip
    assert done.returncode == 1
    assert "is it inside a container?" in done.stderr
    assert done.stderr.count("What to do:") == 1


def test_the_tests_do_not_begin_while_a_lab_is_on_the_machine(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "state.json").touch()
    done = machine(
        "requirements/machine", "test",
        uname="echo Linux x86_64", id="echo 0", df="printf 'Avail\\n99999\\n'", unshare="exit 0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "What to do: make lab-down, then make test." in done.stderr


def test_a_good_machine_hears_nothing(machine: Machine) -> None:
    done = machine(
        "requirements/machine", "rehearsal",
        uname="echo Linux x86_64", id="echo 0", df="printf 'Avail\\n99999\\n'", unshare="exit 0",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_packages_that_are_there_are_not_asked_for(machine: Machine) -> None:
    done = machine("requirements/system", "git", "podman", dpkg_query="printf installed", apt_get="exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_packages_are_asked_for_by_one_at_a_time() -> None:
    script = CHECKOUT / "requirements" / "system"
    with open(script, encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run([str(script), "bash"], check=False, timeout=0.5)


def test_missing_packages_are_named_to_who_may_not_install_them(machine: Machine) -> None:
    answers = 'case "$*" in *podman) printf installed;; *) exit 1;; esac'
    done = machine(
        "requirements/system", "podman", "runc", "maven", dpkg_query=answers, apt_get="exit 9", id="echo 1000"
    )
    assert done.returncode == 1
    assert "Missing Debian packages: runc maven\n" in done.stderr
    assert "as root: apt-get install --no-install-recommends runc maven" in done.stderr


def test_every_part_of_the_tests_says_its_time_and_the_first_failure_ends_them(machine: Machine) -> None:
    done = machine("tests/all", "one", "two", "three", make='echo "making $1"; [ "$1" != two ] || exit 4')
    assert done.returncode == 4
    assert "== one 0:00\n" in done.stdout
    assert "making three" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("== one 0:00, two 0:00, all 0:0")
    assert done.stdout.endswith(": two failed\n")


def test_parts_that_all_pass_are_said_to_pass(machine: Machine) -> None:
    done = machine("tests/all", "one", "two", make="exit 0")
    assert (done.returncode, done.stdout.splitlines()[-1][-8:]) == (0, ": passed")


def test_parts_named_in_one_argument_are_made_together(machine: Machine) -> None:
    done = machine("tests/all", "one", "two three", make='echo "making $*"')
    assert [line for line in done.stdout.splitlines() if line.startswith("making")] == [
        "making one",
        "making --jobs=2 --output-sync=line two three",
    ]
    assert done.stdout.splitlines()[-1].startswith("== one 0:00, two three 0:0")
