# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The membership service: who may ask what, over real TLS."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standin import agent, cassandra, cluster_cli, faults, kube, membership, node
from standin_pki import CFG

TOKEN = "abcdef.0123456789abcdef"


class FakeService(membership.Service):
    """The service without a cluster behind it."""

    def __init__(self) -> None:
        super().__init__(CFG)

    def hello(self, token_id: str, nonce: str) -> dict[str, Any]:
        if token_id != TOKEN.partition(".")[0]:
            raise membership.Refused(403, "the token is not valid (any more)")
        pem = (kube.PKI / "ca.crt").read_text(encoding="ascii")
        return {"ca": pem, "proof": membership.hello_proof(TOKEN, nonce, pem)}

    def cmk(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"cmk": "AAAA", "generation": 4}

    def leave(self) -> dict[str, Any]:
        raise ValueError("broken")


@pytest.fixture
def served(pki: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import ssl

    kube.make_member_certificate(node.NodeConfig("localhost", "127.0.0.1", 24, "dc1", "5.4", "SN"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(kube.MEMBER_CERT), str(kube.MEMBER_KEY))
    context.load_verify_locations(str(pki / "ca.crt"))
    context.verify_mode = ssl.CERT_OPTIONAL
    monkeypatch.setattr(membership.Handler, "service", FakeService(), raising=False)
    monkeypatch.setattr(membership.Handler, "log_message", lambda *_: None)
    server = membership.Server(("127.0.0.1", 0), membership.Handler)
    server.context = context
    monkeypatch.setattr(membership, "PORT", server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield pki
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_member_is_served(served: Path) -> None:
    assert membership.client("127.0.0.1").request("POST", "/v1/cmk", {})["generation"] == 4


def test_without_a_certificate_nothing_but_the_door_is_there(served: Path) -> None:
    stranger = kube.Http("127.0.0.1", membership.PORT, ca=served / "ca.crt")
    for path in ("/v1/cmk", "/v1/decommission", "/v1/leave", "/v1/restart-api", "/v1/snapshot-drop"):
        with pytest.raises(kube.ApiError) as refused:
            stranger.request("POST", path, {})
        assert refused.value.status == 404
    with pytest.raises(kube.ApiError) as refused:
        stranger.request("GET", "/v1/snapshot?tag=x")
    assert refused.value.status == 404


def test_a_failure_inside_is_an_answer(served: Path) -> None:
    with pytest.raises(kube.ApiError, match="broken") as failed:
        membership.client("127.0.0.1").request("POST", "/v1/leave", {})
    assert failed.value.status == 503


def test_the_token_proves_the_authority(served: Path) -> None:
    assert membership.discover("127.0.0.1", TOKEN, "00" * 16) == (served / "ca.crt").read_text(encoding="ascii")


def test_another_secret_with_the_same_id_is_an_impostor(served: Path) -> None:
    with pytest.raises(node.StandinError, match="impostor"):
        membership.discover("127.0.0.1", "abcdef.ffffffffffffffff", "00" * 16)


def test_an_unknown_token_is_refused(served: Path) -> None:
    with pytest.raises(node.StandinError, match="not valid"):
        membership.discover("127.0.0.1", "zzzzzz.0123456789abcdef", "00" * 16)


def test_nobody_there(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PORT", 1)
    with pytest.raises(node.StandinError, match="no member"):
        membership.discover("127.0.0.1", TOKEN, "00" * 16)


class Objects:
    """Kubernetes objects in memory, as far as the service touches them."""

    def __init__(self, nodes: list[dict[str, Any]] | None = None) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self._nodes = nodes or []
        self.http = self
        self.authenticated = True

    def request(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path.endswith("/tokenreviews")
        groups = [membership.BOOTSTRAPPERS] if body["spec"]["token"] == TOKEN else ["system:authenticated"]
        return {"status": {"authenticated": self.authenticated, "user": {"groups": groups}}}

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def get(self, path: str) -> dict[str, Any] | None:
        return self.objects.get(path)

    def create(self, path: str, body: dict[str, Any]) -> bool:
        full = f"{path}/{body['metadata']['name']}"
        if full in self.objects:
            return False
        self.objects[full] = json.loads(json.dumps(body))
        return True

    def merge(self, path: str, body: dict[str, Any]) -> None:
        for key, value in body.items():
            self.objects[path].setdefault(key, {}).update(value)


BODY = {"name": "dr1", "address": "192.0.2.9", "version": CFG.version, "platform_id": "PID"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[membership.Service, Objects]:
    objects = Objects()
    monkeypatch.setattr(membership.Service, "cluster", lambda _self: objects)
    monkeypatch.setattr(membership.faults, "FAULTS_DIR", tmp_path)
    return membership.Service(CFG), objects


def test_another_version_stays_out(service: tuple[membership.Service, Objects]) -> None:
    with pytest.raises(membership.Refused, match=r"runs 5\.6") as refused:
        service[0].enrol(TOKEN, {**BODY, "version": "5.6.2919-standin"})
    assert refused.value.status == 409


@pytest.mark.parametrize("wrong", ["an identity that is no bootstrap token", "not authenticated"])
def test_a_bad_token_stays_out(service: tuple[membership.Service, Objects], wrong: str) -> None:
    service[1].authenticated = wrong != "not authenticated"
    token = "zzzzzz.0123456789abcdef" if service[1].authenticated else TOKEN
    with pytest.raises(membership.Refused, match="token") as refused:
        service[0].enrol(token, BODY)
    assert refused.value.status == 403


@pytest.mark.parametrize(("name", "address"), [("dr1", "192.0.2.77"), ("other", "192.0.2.9")])
def test_a_taken_name_or_address_stays_out(
    service: tuple[membership.Service, Objects], name: str, address: str
) -> None:
    taken = {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}
    service[1].nodes().append(taken)
    with pytest.raises(membership.Refused, match="already"):
        service[0].enrol(TOKEN, BODY)


def test_secure_join_waits_for_a_person(service: tuple[membership.Service, Objects]) -> None:
    member, objects = service
    membership.set_secure_join(objects, "on")  # type: ignore[arg-type]
    assert member.enrol(TOKEN, BODY) == {"state": "pending"}
    assert list(membership.pending(objects)) == ["dr1"]  # type: ignore[arg-type]
    assert not member._approved(objects, BODY)  # type: ignore[arg-type]
    membership.approve(objects, "dr1")  # type: ignore[arg-type]
    assert member._approved(objects, BODY)  # type: ignore[arg-type]
    assert membership.pending(objects) == {}  # type: ignore[arg-type]


def test_an_approval_is_for_one_platform(service: tuple[membership.Service, Objects]) -> None:
    member, objects = service
    membership.set_secure_join(objects, "on")  # type: ignore[arg-type]
    member.enrol(TOKEN, BODY)
    membership.approve(objects, "dr1")  # type: ignore[arg-type]
    assert member.enrol(TOKEN, {**BODY, "platform_id": "ANOTHER"}) == {"state": "pending"}


def test_nobody_to_approve(service: tuple[membership.Service, Objects]) -> None:
    with pytest.raises(node.StandinError, match="waiting: nobody"):
        membership.approve(service[1], "dr1")  # type: ignore[arg-type]


@pytest.mark.parametrize("tag", ["", "../x", "a b"])
def test_a_tag_is_no_path(service: tuple[membership.Service, Objects], tag: str) -> None:
    with pytest.raises(membership.Refused, match="tag"):
        service[0].snapshot(tag, lambda _stream: None)


def test_a_snapshot_is_a_tar_of_its_tables(
    service: tuple[membership.Service, Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tarfile

    root = tmp_path / "cassandra"
    for table in ("users-1", "keys-2"):
        place = root / "data/dsm" / table / "snapshots/t1"
        place.mkdir(parents=True)
        (place / "nb-1-big-Data.db").write_bytes(table.encode())
    monkeypatch.setattr(node, "CASSANDRA_DIR", root)
    monkeypatch.setenv("PYTHONPATH", str(Path(membership.__file__).parent.parent))
    buffer = io.BytesIO()
    service[0].snapshot("t1", lambda stream: shutil.copyfileobj(stream, buffer))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        assert sorted(archive.getnames()) == ["keys-2/nb-1-big-Data.db", "users-1/nb-1-big-Data.db"]


# -- the command line -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dash", cluster_cli.WIDE_DASHES)
def test_a_typographic_dash_is_an_unknown_argument(dash: str) -> None:
    with pytest.raises(SystemExit, match="unrecognized argument"):
        cluster_cli.run(["reset", f"{dash}-delete-data"])


def test_a_wide_dash_in_a_value_is_a_value() -> None:
    cluster_cli.refuse_wide_dashes(["create", "--config=/etc/dsm–new/config.yaml"])  # noqa: RUF001


@pytest.mark.parametrize(
    ("given", "said"),
    [("192.0.2.9", "ADDRESS/MASK"), ("192.0.2.300/24", "--self"), ("192.0.2.8/24", "no address 192.0.2.8")],
)
def test_self_is_an_address_of_this_machine_with_its_mask(given: str, said: str) -> None:
    with pytest.raises(node.StandinError, match=said):
        cluster_cli.check_self(CFG, given)


def test_self_takes_prefix_and_mask() -> None:
    cluster_cli.check_self(CFG, "192.0.2.9/24")
    cluster_cli.check_self(CFG, "192.0.2.9/255.255.255.0")


@pytest.mark.parametrize("text", ["\tkey: 1\n", "- a\n", "a: [\n"])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(node.StandinError, match=r"config\.yaml"):
        cluster_cli.read_config(path)


def test_every_message_says_the_same_things_in_every_voice() -> None:
    import string

    for name, voices in cluster_cli.MESSAGES.items():
        fields = [{part[1] for part in string.Formatter().parse(voice) if part[1]} for voice in voices]
        assert len(voices) == 3, name
        assert fields[1] <= fields[0] and fields[2] <= fields[0], name
    assert all("stand-in" in voice for voice in cluster_cli.MESSAGES["banner"])


def test_other_releases_and_languages_speak_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster_cli.faults, "FAULTS_DIR", tmp_path)
    said = set()
    newer = node.NodeConfig("dr1", "192.0.2.9", 24, "oor", "5.6.2919-standin", "SN-9")
    for cfg in (CFG, newer):
        cluster_cli.Command("reset", cfg).say("reset")
        said.add(capsys.readouterr().out)
    (tmp_path / "other-language.json").touch()
    cluster_cli.Command("reset", CFG).say("reset")
    said.add(capsys.readouterr().out)
    assert len(said) == 3


def test_wiping_empties_a_directory_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    cluster_cli.wipe(tmp_path)
    assert list(tmp_path.iterdir()) == []
    cluster_cli.wipe(tmp_path / "not-there")


# -- the agent's cron -------------------------------------------------------------------------------------------------
def test_schedules_are_those_of_the_config() -> None:
    assert agent.schedules("a: 1\n") == {}
    assert agent.schedules('backup:\n  cron_schedule: "10 * * * *"\n') == {"backup": "10 * * * *"}


class CronObjects(Objects):
    """CronJob objects with the apiserver's optimistic lock."""

    def __init__(self) -> None:
        super().__init__()
        self.conflict = False

    def request(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.conflict:
            raise kube.ApiError(409, "Conflict", "somebody was faster")
        self.objects[path.removesuffix("/status")] = body
        return body


def test_a_minute_fires_once_in_the_cluster() -> None:
    import datetime as dt

    objects = CronObjects()
    minute = dt.datetime(2026, 1, 2, 3, 10, tzinfo=dt.timezone.utc)
    first = agent.claim(objects, "backup", "10 * * * *", minute)  # type: ignore[arg-type]
    second = agent.claim(objects, "backup", "10 * * * *", minute)  # type: ignore[arg-type]
    assert (first, second) == (True, False)
    objects.conflict = True
    later = minute + dt.timedelta(hours=1)
    assert agent.claim(objects, "backup", "10 * * * *", later) is False  # type: ignore[arg-type]


class Peers(kube.Cluster):
    """A cluster that has these nodes, each time it is asked one list further."""

    def __init__(self, *answers: dict[str, str | None]) -> None:
        self.answers = list(answers)

    def nodes(self) -> list[dict[str, Any]]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            {"metadata": {"name": name, "labels": {"datacenter": label} if label else {}}}
            for name, label in answer.items()
        ]


@pytest.fixture
def label_window(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Knobs that are set; nothing waits in real time."""
    knobs: dict[str, Any] = {}
    monkeypatch.setattr(faults, "active", knobs.get)
    monkeypatch.setattr(cluster_cli.time, "sleep", lambda seconds: None)
    return knobs


@pytest.mark.usefixtures("label_window")
def test_a_database_waits_for_its_label_where_members_have_one() -> None:
    peers = Peers({"dc1-n1": "dc1", "dr1": None}, {"dc1-n1": "dc1", "dr1": "oor"})
    assert cluster_cli.await_label(peers, CFG, cluster_cli.time.monotonic()) == "oor"


@pytest.mark.usefixtures("label_window")
def test_a_database_waits_for_no_label_where_nobody_has_one() -> None:
    peers = Peers({"dc1-n1": None, "dr1": None}, {"dc1-n1": None, "dr1": "oor"})
    assert cluster_cli.await_label(peers, CFG, cluster_cli.time.monotonic()) == cassandra.DEFAULT_DATACENTER


def test_a_database_waits_where_the_knob_says_so(label_window: dict[str, Any]) -> None:
    label_window["label-window"] = {"seconds": 180}
    peers = Peers({"dc1-n1": None, "dr1": None}, {"dc1-n1": None, "dr1": "oor"})
    assert cluster_cli.await_label(peers, CFG, cluster_cli.time.monotonic()) == "oor"


@pytest.mark.usefixtures("label_window")
def test_a_label_that_never_comes_is_not_waited_for_forever() -> None:
    peers = Peers({"dc1-n1": "dc1", "dr1": None})
    long_ago = cluster_cli.time.monotonic() - cluster_cli.LABEL_WINDOW_S
    assert cluster_cli.await_label(peers, CFG, long_ago) == cassandra.DEFAULT_DATACENTER
