# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`lab load` against the stand-in's API: what it fills can be proved, and what is lost is noticed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from labctl.tls import Authority
from standin import api, sealing

VERSION = "5.4.2031-standin"
PLATFORM = b"p" * 32
PROGRAM = Path(__file__).resolve().parents[2] / "lab" / "standin" / "load"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "tls").mkdir()
    authority = Authority("test")
    authority.write(tmp_path / "tls/ca.crt")
    authority.issue("node", ["node"], ["127.0.0.1"], tmp_path / "tls/api.crt", tmp_path / "tls/api.key")
    host = {"dsm_address": "127.0.0.1"}
    groups = {"dsm_nodes": {"hosts": {"n1": host}}, "dsm_dr_nodes": {"hosts": {"dr1": host}}}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    (tmp_path / "secrets.yml").write_text('{"dsm_scp_password": "kept"}')
    return tmp_path


@pytest.fixture
def load(state: Path, store: Any) -> Iterator[Any]:
    store.put_sealed_copy("n1", 1, sealing.seal(sealing.new_cmk(), 1, PLATFORM, VERSION))
    backend = api.Backend(VERSION, lambda name: None)
    backend.open_forever(lambda: store, PLATFORM)
    server = api.Server(("127.0.0.1", 0), backend, api.ROUTES, api.tls_context(state / "tls"))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    loader = importlib.machinery.SourceFileLoader("lab_load", str(PROGRAM))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("lab_load", loader) or pytest.fail())
    loader.exec_module(module)
    module.API_PORT = server.server_address[1]
    yield lambda *words: module.main(["--state", str(state), *words])
    server.shutdown()
    server.server_close()
    thread.join(5)


def test_what_was_filled_is_proved_through_every_node(load: Any, state: Path, capsys: Any) -> None:
    assert load("--keys", "4") == 0
    secrets = json.loads((state / "secrets.yml").read_text())
    assert secrets["dsm_scp_password"] == "kept"
    assert {"dsm_api_key", "dsm_account_id", "dsm_sysadmin_password"} <= set(secrets)
    assert stat.S_IMODE((state / "secrets.yml").stat().st_mode) == 0o600
    output = capsys.readouterr().out
    assert not [value for key, value in secrets.items() if key.endswith(("key", "password")) and value in output]
    assert load("--prove", "n1", "dr1") == 0
    proved = json.loads(capsys.readouterr().out)
    assert proved["known"] == proved["decrypted"] == 8
    assert proved["by_node"] == {"n1": 8, "dr1": 8}


def test_a_second_load_changes_nothing(load: Any, state: Path) -> None:
    assert load("--keys", "1") == 0
    before = (state / "load.json").read_bytes(), (state / "secrets.yml").read_bytes()
    assert load("--keys", "1") == 0
    assert before == ((state / "load.json").read_bytes(), (state / "secrets.yml").read_bytes())


def test_a_load_that_died_half_way_is_finished_by_the_next(load: Any, state: Path, store: Any, capsys: Any) -> None:
    put, writes = store.put, 0

    def failing(*row: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == 9:
            store.quorum = False
        put(*row)

    store.put = failing
    assert load("--keys", "3") == 1
    store.quorum, store.put = True, put
    assert load("--keys", "3") == 0
    capsys.readouterr()
    assert load("--prove", "n1") == 0


def test_lost_rows_are_noticed(load: Any, state: Path, store: Any, capsys: Any) -> None:
    assert load("--keys", "3") == 0
    capsys.readouterr()
    for key in [key for key in store.rows if key[0] == "security_objects"]:
        del store.rows[key]
    assert load("--prove", "n1") == 1
    proved = json.loads(capsys.readouterr().out)
    assert proved["decrypted"] == 0
    assert len(proved["problems"]) == proved["known"] == 7


def test_nothing_to_prove_is_no_success(load: Any, capsys: Any) -> None:
    assert load("--prove", "n1") == 1
    assert "run lab/lab load first" in capsys.readouterr().err
    assert load("--prove", "nowhere") == 1


def test_writing_goes_on_and_notes_what_failed(load: Any, state: Path, store: Any) -> None:
    def written_until(count: int) -> list[dict[str, Any]]:
        """All notes after writing went on until there were so many of them."""
        notes = state / "load-writes.jsonl"

        def enough() -> None:
            while not notes.exists() or len(notes.read_bytes().splitlines()) < count:
                threading.Event().wait(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=enough, daemon=True).start()
        assert load("--keep-writing", "--interval", "0.01", "--seconds", "120") == 0
        return [json.loads(line) for line in notes.read_text().splitlines()]

    assert load("--keys", "1") == 0
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        lines = written_until(3)
        assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
        assert {line["status"] for line in lines} == {200}
        store.quorum = False
        after = written_until(len(lines) + 3)[len(lines) :]
        assert {(line["status"], line["sequence"]) for line in after} == {(503, len(lines) + 1)}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
