# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""health_info and canary against the stand-in's API over real TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dsm_api import HOST, Site
from module_run import Answer, run


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path).open()
    yield found
    found.close()


@pytest.fixture
def app(site: Site) -> Site:
    return site.with_app()


def health(*sites: Site, **options: Any) -> Answer:
    endpoints = [dict(one.endpoint(), name=f"n{number}") for number, one in enumerate(sites, 1)]
    return run("health_info", {"endpoints": endpoints, "ca_path": sites[0].ca_path, **options})


def canary(site: Site, state: str, check: bool = False, **options: Any) -> Answer:
    given = {"endpoint": site.endpoint(), "ca_path": site.ca_path, "api_key": site.api_key, "state": state, **options}
    return run("canary", given, check=check)


@pytest.mark.parametrize(
    ("quorum", "everyone", "state"), [(True, True, "full"), (True, False, "degraded"), (False, False, "read_only")]
)
def test_health_is_told_from_three_answers(site: Site, quorum: bool, everyone: bool, state: str) -> None:
    site.store.quorum, site.store.all = quorum, everyone
    answer = health(site)
    assert answer.result["endpoints"][0]["state"] == state
    assert answer.result["summary"]["state"] == state
    assert answer.result["summary"]["writable"] is quorum
    assert set(answer.result["endpoints"][0]["answers"]) == {"plain", "quorum", "all"}


def test_read_only_needs_a_request_that_reads(app: Site) -> None:
    app.store.quorum = app.store.all = False
    assert health(app).result["endpoints"][0]["confirmed_by"] == "version"
    by_login = health(app, api_key="bm90OmEga2V5").result["endpoints"][0]
    assert (by_login["state"], by_login["confirmed_by"]) == ("unknown", None)


def test_only_the_three_documented_questions_are_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _api

    real = _api.Api.request

    def spy(self: Any, method: str, path: str, *rest: Any, **more: Any) -> Any:
        sent.append(path)
        return real(self, method, path, *rest, **more)

    monkeypatch.setattr(_api.Api, "request", spy)
    site.store.quorum = site.store.all = False
    health(site)
    allowed = {"/sys/v1/health", "/sys/v1/health?consistency=quorum", "/sys/v1/health?consistency=all"}
    assert set(sent) - {"/sys/v1/version"} == allowed


def test_a_closed_service_is_down_and_nobody_is_unreachable(tmp_path: Path, site: Site) -> None:
    (tmp_path / "other").mkdir()
    sealed = Site(tmp_path)
    answer = health(site, sealed)
    assert [one["state"] for one in answer.result["endpoints"]] == ["full", "down"]
    assert answer.result["summary"]["state"] == "degraded"
    sealed.close()
    assert health(site, sealed).result["endpoints"][1]["state"] == "unreachable"


def test_a_wrong_certificate_is_never_health(site: Site) -> None:
    site.faults["api-certificate"] = {}
    answer = health(site).result["endpoints"][0]
    assert (answer["state"], answer["answers"]["plain"]["failure"]) == ("unknown", "tls")


@pytest.mark.parametrize(("status", "state"), [("200", "unknown"), ("302", "unknown"), ("500", "down")])
def test_other_answers_than_204_are_never_health(site: Site, status: str, state: str) -> None:
    site.faults["api-health"] = {"answer": status}
    assert health(site).result["endpoints"][0]["state"] == state


def test_a_ca_that_cannot_be_read_is_an_error_and_not_a_state(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for wrong in ("/nonexistent.pem", str(tmp_path / "empty.pem")):
        answer = run("health_info", {"endpoints": [dict(site.endpoint(), name="n1")], "ca_path": wrong})
        assert answer.failed and answer.result["error_code"] == "CA_UNREADABLE"


def test_the_ca_may_be_given_as_text(site: Site) -> None:
    text = Path(site.ca_path).read_text()
    answer = run("health_info", {"endpoints": [dict(site.endpoint(), name="n1")], "ca_pem": text})
    assert answer.result["summary"]["state"] == "full"


def test_two_clusters_that_serve_are_a_split_brain(site: Site) -> None:
    endpoints = [dict(site.endpoint(), name="a", cluster="f1"), dict(site.endpoint(), name="b", cluster="f2")]
    answer = run("health_info", {"endpoints": endpoints, "ca_path": site.ca_path})
    assert answer.result["summary"]["state"] == "split_brain"
    assert answer.result["summary"]["writable"] is False


def test_the_service_name_is_resolved_and_every_address_is_asked(site: Site) -> None:
    answer = run("health_info", {"service_name": "localhost", "service_port": site.port, "ca_path": site.ca_path})
    states = {one["address"]: one["state"] for one in answer.result["endpoints"]}
    assert states["127.0.0.1"] == "full"
    unknown = run("health_info", {"service_name": "no-such-name.invalid", "ca_path": site.ca_path}).result
    assert unknown["endpoints"][0]["state"] == "unreachable"


def test_a_canary_comes_back_from_a_backup_and_tells_its_age(app: Site, tmp_path: Path) -> None:
    first = canary(app, "written").result
    backup = app.copy_of_database()
    second = canary(app, "written").result
    assert (first["sequence"], second["sequence"]) == (1, 2)
    restored = Site(tmp_path, backup).open()
    restored.api_key = app.api_key
    try:
        proved = canary(restored, "proved", reference_time="2100-01-01T00:00:00Z").result
        assert proved["proofs"] == {"decrypt": True, "mac": True, "signature": True}
        assert (proved["sequence"], proved["written_at"]) == (1, first["written_at"])
        assert proved["known_answers"] == first["known_answers"]
        assert proved["recovery_point_seconds"] > 2_000_000_000
        too_old = canary(restored, "proved", minimum_sequence=2)
        assert too_old.failed
        assert [one["code"] for one in too_old.result["reasons"]] == ["CANARY_TOO_OLD"]
    finally:
        restored.close()


def test_a_canary_of_other_keys_is_not_proved(app: Site) -> None:
    written = canary(app, "written").result
    # The MAC and the signature of another canary in the marker of this one: what a mixed restore would leave.
    other = canary(app, "written", name="other").result
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._api import Api, Endpoint
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.canary import Marker

    mixed = Marker(
        sequence=written["sequence"],
        written_at=written["written_at"],
        **{**written["known_answers"], "mac": other["known_answers"]["mac"]},
    )
    api = Api(Endpoint("127.0.0.1", app.port, HOST), app.ca_path)
    api.log_in(api_key=app.api_key)
    api.call("PATCH", "/crypto/v1/keys/" + written["keys"]["cipher"], {"custom_metadata": mixed.as_metadata()})
    answer = canary(app, "proved")
    assert answer.failed and answer.result["error_code"] == "CANARY_NOT_PROVED"
    assert answer.result["details"]["proofs"] == {"decrypt": True, "mac": False, "signature": True}


def test_a_canary_that_is_not_there_is_not_proved(app: Site) -> None:
    answer = canary(app, "proved")
    assert answer.failed
    assert [one["code"] for one in answer.result["reasons"]] == ["CANARY_KEY_MISSING"] * 3


def test_present_makes_keys_once_and_check_mode_makes_none(app: Site) -> None:
    planned = canary(app, "present", check=True).result
    assert planned["changed"] and planned["keys"] == {"cipher": None, "mac": None, "signature": None}
    assert canary(app, "present").result["changed"]
    again = canary(app, "present")
    assert again.result["changed"] is False and again.result["before"] == again.result["after"]
    assert [one["code"] for one in canary(app, "proved").result["reasons"]] == ["CANARY_NEVER_WRITTEN"]


def test_check_mode_predicts_the_next_sequence(app: Site) -> None:
    canary(app, "written")
    planned = canary(app, "written", check=True).result
    assert (planned["changed"], planned["sequence"], planned["written_at"]) == (True, 2, None)
    assert canary(app, "proved").result["sequence"] == 1


def test_a_user_with_a_password_can_do_it_too(app: Site) -> None:
    options = {"endpoint": app.endpoint(), "ca_path": app.ca_path, "user": "ops@example.test", "state": "written"}
    account = {"account_id": app.account_id, "group_id": app.group_id}
    answer = run("canary", {**options, **account, "password": "correct horse"})
    assert answer.result.get("sequence") == 1, answer.text


@pytest.mark.parametrize("secret", ["d3Jvbmc6Y3JlZGVudGlhbA==", "not base64 at all"])
def test_a_refused_log_in_tells_nothing_about_the_credential(app: Site, secret: str) -> None:
    app.api_key = secret
    answer = canary(app, "proved")
    assert answer.failed and answer.result["error_code"] == "API_STATUS"
    assert secret not in answer.text


def test_a_time_without_zone_is_refused_before_anything_is_asked(app: Site) -> None:
    answer = canary(app, "proved", reference_time="2026-11-22T00:00:00")
    assert answer.failed and answer.result["error_code"] == "TIME_INVALID"


def test_writing_without_quorum_fails_and_leaves_the_old_canary(app: Site) -> None:
    canary(app, "written")
    app.store.quorum = False
    answer = canary(app, "written")
    assert answer.failed and answer.result["details"]["status"] // 100 == 5
    app.store.quorum = True
    assert canary(app, "proved").result["sequence"] == 1
