from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipway.serving.errors import StartupError
from slipway.serving.versions import (
    VersionPolicy,
    fingerprint,
    parse_version,
    scan,
    weights_size,
)

VERSIONS = st.integers(1, 10**18 - 1)
POLICIES = st.one_of(
    st.just(VersionPolicy()),
    st.builds(VersionPolicy, latest=st.integers(1, 100)),
    st.builds(VersionPolicy, only=st.frozensets(VERSIONS, min_size=1)),
)


@given(POLICIES)
def test_a_policy_is_what_its_text_means(policy: VersionPolicy) -> None:
    assert VersionPolicy.parse(str(policy)) == policy


@given(POLICIES, st.sets(VERSIONS))
def test_a_policy_chooses_among_what_there_is_in_order(
    policy: VersionPolicy, versions: set[int]
) -> None:
    chosen = policy.choose(versions)
    assert chosen == sorted(set(chosen) & versions)
    if policy.latest is not None:
        assert len(chosen) == min(policy.latest, len(versions))
        assert all(left < min(chosen) for left in versions.difference(chosen))
    elif policy.only is not None:
        assert set(chosen) == versions & policy.only
    else:
        assert set(chosen) == versions


def test_latest_without_a_number_is_the_latest_one() -> None:
    assert VersionPolicy.parse("latest").choose([1, 3, 2]) == [3]


@pytest.mark.parametrize(
    "text", ["", "latest:", "latest:0", "newest", "1,", "1,,2", "0", "-1", "all,1", "1.0"]
)
def test_what_is_no_policy_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="write all, latest:N, or versions as in 3,5"):
        VersionPolicy.parse(text)


@pytest.mark.parametrize("text", ["", "0", "01", "+1", " 1", "1\n", "9" * 19, "٣", "1.0"])
def test_versions_have_one_spelling(text: str) -> None:
    assert parse_version(text) is None


def test_names_of_models_have_a_length(tmp_path: Path) -> None:
    for length in (128, 129):
        (tmp_path / ("m" * length) / "1").mkdir(parents=True)
    right, wrong = scan(tmp_path)
    assert right.versions == (1,)
    assert "at most 128" in wrong.problem


def test_what_lies_in_a_directory(tmp_path: Path) -> None:
    for path in ("b/2", "b/10", "b/1.tmp", "b/.hidden", "a/x", ".git/1", "bad name/1"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "README").touch()
    (tmp_path / "b" / "7").touch()
    found = {model.name: model for model in scan(tmp_path)}
    assert list(found) == ["a", "b", "bad name"]
    assert found["b"].versions == (2, 10)
    assert not found["b"].problem
    assert found["a"].versions == ()
    assert "expected a/1/program.pb" in found["a"].problem
    assert "letters, digits" in found["bad name"].problem


def test_a_directory_too_deep_is_told_from_an_empty_one(tmp_path: Path) -> None:
    version = tmp_path / "model" / "3"
    (version / "weights").mkdir(parents=True)
    (version / "program.pb").touch()
    (found,) = scan(version.parent)
    assert found.problem.endswith("if it is a version, the repository is one level up")
    with pytest.raises(StartupError, match="is a program and no model repository") as caught:
        scan(version)
    assert caught.value.exit_code == 2


def test_a_name_that_is_no_text_is_told_as_text(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/mod\xe8le")
    (model,) = scan(tmp_path)
    assert model.name == "mod\N{REPLACEMENT CHARACTER}le"
    assert "letters, digits" in model.problem


def test_a_link_to_a_version_is_one(tmp_path: Path) -> None:
    (tmp_path / "store" / "abc").mkdir(parents=True)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "1").symlink_to(tmp_path / "store" / "abc")
    assert scan(tmp_path)[0].versions == (1,)


def test_a_link_that_cannot_be_followed_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "good" / "1").mkdir(parents=True)
    (tmp_path / "good" / "2").symlink_to("2")
    (tmp_path / "bad").symlink_to("bad")
    bad, good = scan(tmp_path)
    assert good.versions == (1, 2)
    assert bad.is_unreadable
    assert bad.problem == "its directory cannot be read: Too many levels of symbolic links"


def test_a_directory_that_is_gone_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    assert scan(tmp_path) == []
    with pytest.raises(StartupError, match=r"cannot read .*gone: No such file"):
        scan(tmp_path / "gone")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    directory = tmp_path / "m" / "1"
    (directory / "weights").mkdir(parents=True)
    (directory / "program.pb").write_bytes(b"12345")
    (directory / "weights" / "0.safetensors").write_bytes(bytes(1000))
    return directory


def test_a_fingerprint_changes_with_every_change(version: Path) -> None:
    seen = {fingerprint(version)}
    program = version / "program.pb"
    status = program.stat()

    program.write_bytes(b"54321")  # as many bytes
    os.utime(program, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.add(fingerprint(version))

    other = version / "program.new"
    other.write_bytes(b"54321")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    other.replace(program)  # the same size and time
    seen.add(fingerprint(version))

    (version / "weights" / "1.safetensors").touch()
    seen.add(fingerprint(version))
    (version / "weights" / "0.safetensors").unlink()
    seen.add(fingerprint(version))
    assert len(seen) == 5
    assert fingerprint(version) in seen


def test_what_is_not_there_has_the_empty_fingerprint(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "gone") == ()


def test_the_size_of_the_weights_is_that_of_their_files(version: Path) -> None:
    assert weights_size(version) == 1000
    assert weights_size(version.parent / "2") == 0


def test_links_that_lead_in_circles_are_followed_once(tmp_path: Path) -> None:
    version = tmp_path / "model" / "1"
    version.mkdir(parents=True)
    (version / "program.pb").write_bytes(b"program")
    (version / "a").symlink_to(".")
    (version / "b").symlink_to("..")
    (version / "weights").mkdir()
    (version / "weights" / "up").symlink_to("..")
    (version / "weights" / "w.safetensors").write_bytes(bytes(8))
    assert "weights/w.safetensors" in {item[0] for item in fingerprint(version)}
    assert weights_size(version) == 8
