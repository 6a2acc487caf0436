# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache: a recipe's key changes with everything that matters and with nothing else; half-made is never whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from labctl import cache, cassandra, image, kube, paths


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    place = tmp_path / "recipe"
    (place / "sub").mkdir(parents=True)
    (place / "a").write_text("one", encoding="ascii")
    (place / "sub" / "b").write_text("two", encoding="ascii")
    return place


def test_the_key_is_stable(recipe: Path, tmp_path: Path) -> None:
    before = cache.digest("kind", recipe)
    copy = tmp_path / "copy"
    (copy / "sub").mkdir(parents=True)
    (copy / "sub" / "b").write_text("two", encoding="ascii")
    (copy / "a").write_text("one", encoding="ascii")
    assert cache.digest("kind", recipe) == before == cache.digest("kind", copy)


def test_the_key_knows_every_change(recipe: Path) -> None:
    keys = [cache.digest("kind", recipe), cache.digest("other", recipe)]
    (recipe / "a").write_text("uno", encoding="ascii")
    keys.append(cache.digest("kind", recipe))
    (recipe / "a").chmod(0o755)
    keys.append(cache.digest("kind", recipe))
    (recipe / "a").rename(recipe / "c")
    keys.append(cache.digest("kind", recipe))
    (recipe / "link").symlink_to("c")
    keys.append(cache.digest("kind", recipe))
    (recipe / "link").unlink()
    (recipe / "link").symlink_to("sub")
    keys.append(cache.digest("kind", recipe))
    (recipe / "empty").mkdir()
    keys.append(cache.digest("kind", recipe))
    assert len(set(keys)) == len(keys)


def test_the_key_ignores_what_python_leaves(recipe: Path) -> None:
    before = cache.digest(recipe)
    (recipe / "__pycache__").mkdir()
    (recipe / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert cache.digest(recipe) == before


def test_texts_cannot_run_together() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kmsops-lab"


def test_built_once(home: Path) -> None:
    calls: list[Path] = []

    def build(draft: Path) -> None:
        calls.append(draft)
        (draft / "thing").write_text("made", encoding="ascii")

    for _ in range(2):
        assert (cache.get("kind", "key", build) / "thing").read_text(encoding="ascii") == "made"
    assert len(calls) == 1


def test_half_made_is_made_again(home: Path) -> None:
    def dies(draft: Path) -> None:
        (draft / "half").write_text("half", encoding="ascii")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        cache.get("kind", "key", dies)
    assert not cache.place("kind", "key").exists()
    whole = cache.get("kind", "key", lambda draft: (draft / "whole").touch())
    assert [path.name for path in whole.iterdir()] == ["whole"]


def test_older_recipes_are_forgotten_but_not_the_last_one(home: Path) -> None:
    for number, key in enumerate("abcd"):
        place = cache.get("kind", key, lambda draft: None)
        os.utime(place, (number, number))
    cache.get("kindred", "a", lambda draft: None)
    cache.forget_older("kind", "d")
    assert sorted(path.name for path in home.iterdir()) == ["kind-c", "kind-d", "kindred-a"]


def test_keys_are_made_without_side_effects(home: Path) -> None:
    assert len({image.base_key(), image.key(), cassandra.key(), kube.key()}) == 4
    assert not home.exists()


def test_jars_must_be_exactly_the_pinned_ones() -> None:
    trusted = cassandra.pinned()
    assert len(trusted) > 50
    assert all(len(total) == 64 for total in trusted.values())
    assert cassandra.compare(dict(trusted), trusted) == []
    first, second, *_ = sorted(trusted)
    found = {**trusted, first: "0" * 64, "extra.jar": "1" * 64}
    del found[second]
    wrong = cassandra.compare(found, trusted)
    assert [
        f"{second} is missing",
        "extra.jar is not in lab/cassandra/SHA256SUMS",
        f"{first} has another checksum",
    ] == wrong


@pytest.mark.parametrize(
    ("words", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.9 linux/amd64", (1, 9)),
        ("go version devel go1.24-abcdef linux/amd64", (1, 24)),
        ("", (0,)),
        ("command not found", (0,)),
    ],
)
def test_the_version_of_go(words: str, version: tuple[int, ...]) -> None:
    assert kube.go_version(words) == version
    assert (version >= kube.OLDEST_GO) == (version[0] == 1 and len(version) > 1 and version[1] >= 23)


def test_kubernetes_is_the_version_of_the_module() -> None:
    flags = kube.link_flags(kube.version())
    assert f"gitVersion={kube.version()}" in flags
    assert kube.version() in (paths.LAB / "kube" / "go.mod").read_text(encoding="ascii")
