from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from slipway.serving.errors import InvalidRequestError, NotFoundError
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository
from slipway.serving.routing import Route
from slipway.tests.serving.programs import write_affine

ROUTE = Route(labels={"stable": 1, "canary": 3}, shares={"canary": 20.0})


def test_as_many_requests_go_to_a_version_as_is_its_share() -> None:
    count = Counter(ROUTE.choose(f"request {index}".encode()) for index in range(10_000))
    assert set(count) == {3, None}
    # Four standard deviations of the binomial distribution, and the same in every run.
    assert abs(count[3] - 2000) < 4 * (10_000 * 0.2 * 0.8) ** 0.5


def test_an_id_decides_and_always_in_the_same_way() -> None:
    other = Route(labels={"stable": 1, "canary": 3}, shares={"canary": 20.0})
    for index in range(100):
        identifier = str(index).encode()
        assert ROUTE.choose(identifier) == other.choose(identifier)


def test_a_larger_share_takes_nobody_back() -> None:
    smaller = Route(labels={"canary": 3}, shares={"canary": 5.0})
    for index in range(1000):
        identifier = str(index).encode()
        if smaller.choose(identifier) == 3:
            assert ROUTE.choose(identifier) == 3


def test_requests_without_an_id_are_shared_out_too() -> None:
    count = Counter(ROUTE.choose(b"") for _ in range(1000))
    assert set(count) == {3, None}


@pytest.mark.parametrize("share", [0.0, 100.0])
def test_none_and_all_are_shares(share: float) -> None:
    route = Route(labels={"canary": 3}, shares={"canary": share})
    chosen = {route.choose(str(index).encode()) for index in range(1000)}
    assert chosen == ({3} if share else {None})


def loaded(root: Path, route: Route, versions: tuple[int, ...]) -> Repository:
    for version in versions:
        write_affine(root / "affine" / str(version))
    repository = Repository(root, routes={"affine": route})
    repository.update(Loader(Host(Processors(1)), Environment()))
    return repository


def test_the_rest_goes_to_the_stable_version_and_not_to_the_highest(tmp_path: Path) -> None:
    repository = loaded(tmp_path, ROUTE, (1, 2, 3))
    count = Counter(repository.find("affine", "", b"%d" % index).version for index in range(500))
    assert set(count) == {1, 3}
    assert count[1] > count[3]
    assert repository.is_split("affine")
    assert not repository.is_split("other")
    repository.close()


def test_without_a_stable_version_the_rest_goes_to_the_highest_that_has_no_share(
    tmp_path: Path,
) -> None:
    route = Route(labels={"canary": 3}, shares={"canary": 20.0})
    repository = loaded(tmp_path, route, (1, 2, 3))
    assert {repository.find("affine", "", b"%d" % i).version for i in range(500)} == {2, 3}
    repository.close()


def test_a_share_for_a_version_that_is_not_there_goes_to_the_rest(tmp_path: Path) -> None:
    repository = loaded(tmp_path, ROUTE, (1, 2))
    assert {repository.find("affine", "", b"%d" % i).version for i in range(500)} == {1}
    repository.close()


def test_a_version_can_be_asked_for_by_its_label(tmp_path: Path) -> None:
    repository = loaded(tmp_path, ROUTE, (1, 2))
    assert repository.find("affine", "stable").version == 1
    with pytest.raises(NotFoundError, match="'affine' version 3 is not found"):
        repository.find("affine", "canary")
    with pytest.raises(InvalidRequestError, match="or one of the labels stable, canary"):
        repository.find("affine", "latest")
    repository.close()
