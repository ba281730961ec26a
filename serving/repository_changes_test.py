"""The repository while its directory changes."""

from __future__ import annotations

import gc
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipway.serving.errors import NotFoundError, StartupError, UnavailableError
from slipway.serving.host import Host
from slipway.serving.loader import Loader
from slipway.serving.model import Environment, Model
from slipway.serving.plan import InferenceRequest
from slipway.serving.processors import Processors
from slipway.serving.repository import Repository, State
from slipway.serving.request_queue import PendingRequest
from slipway.serving.versions import VersionPolicy
from slipway.tests.serving.programs import write_affine

CPU = Host(Processors(1))
LATEST = VersionPolicy(latest=1)


class Following:
    """A repository, and a loader that brings it up to date."""

    def __init__(self, root: Path, policy: VersionPolicy = LATEST, **options: object) -> None:
        self.root = root
        self.loader = Loader(CPU, Environment(), snapshot=True)
        self.changes = 0
        self.repository = Repository(root, default_policy=policy, **options)  # type: ignore[arg-type]
        self.update()

    def update(self, **options: object) -> None:
        self.repository.update(self.loader, on_change=self.on_change, **options)  # type: ignore[arg-type]

    def on_change(self) -> None:
        self.changes += 1

    def look(self, times: int = 2) -> None:
        """As a poll does; what is new is loaded at the second look."""
        for _ in range(times):
            self.update(settled=True)

    @property
    def default(self) -> Model:
        return self.repository.find("affine", "")

    def lines(self) -> dict[int, tuple[State, str]]:
        lines = self.repository.index()
        return {line.version: (line.state, line.reason) for line in lines if line.name == "affine"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    write_affine(root / "affine" / "1")
    write_affine(root / "other" / "1")
    return root


@pytest.fixture
def following(root: Path) -> Iterator[Following]:
    made = Following(root)
    yield made
    made.repository.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "instance 0"]


def damage(version: Path) -> None:
    with (version / "program.pb").open("ab") as file:
        file.write(b"x")


def test_a_new_version_takes_over_once_it_has_been_the_same_for_two_looks(
    following: Following,
) -> None:
    write_affine(following.root / "affine" / "2", scale=2.0)
    following.look(1)
    assert following.default.version == 1
    assert following.lines()[2] == (State.LOADING, "")
    following.look(1)
    assert following.default.version == 2
    with pytest.raises(NotFoundError):
        following.repository.find("affine", "1")
    following.repository.close()
    assert following.lines() == {2: (State.READY, "")}


def test_a_version_is_not_touched_while_it_is_being_copied(following: Following) -> None:
    write_affine(following.root.parent / "whole", scale=2.0)
    copy = following.root / "affine" / "2"
    files = [path for path in (following.root.parent / "whole").rglob("*") if path.is_file()]
    for path in files:
        target = copy / path.relative_to(following.root.parent / "whole")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        following.look(1)
        assert following.default.version == 1
        assert following.lines()[2] == (State.LOADING, "")
    following.look(1)
    assert following.default.version == 2


def test_a_copy_that_pauses_half_way_is_found_wanting_and_tried_again(
    following: Following,
) -> None:
    write_affine(following.root.parent / "whole", scale=2.0)
    copy = following.root / "affine" / "2"
    copy.mkdir()
    shutil.copy(following.root.parent / "whole" / "program.pb", copy)
    following.look(3)
    assert following.default.version == 1
    state, reason = following.lines()[2]
    assert state is State.UNAVAILABLE
    assert "affine/2" in reason
    shutil.copytree(following.root.parent / "whole", copy, dirs_exist_ok=True)
    following.look()
    assert following.default.version == 2
    assert following.lines()[2] == (State.READY, "")


def test_a_broken_version_leaves_the_old_one_in_place_with_a_reason(following: Following) -> None:
    write_affine(following.root / "affine" / "2")
    damage(following.root / "affine" / "2")
    following.look()
    assert following.default.version == 1
    assert following.lines()[1] == (State.READY, "")
    state, reason = following.lines()[2]
    assert state is State.UNAVAILABLE
    assert reason
    assert following.repository.is_ready()
    with pytest.raises(UnavailableError, match="version 2 is not at ready state: it could not"):
        following.repository.find("affine", "2")


def test_rolling_back_is_removing_the_newest(following: Following) -> None:
    write_affine(following.root / "affine" / "2")
    following.look()
    shutil.rmtree(following.root / "affine" / "2")
    following.look(1)
    assert following.default.version == 2  # it may be being replaced
    following.look(1)
    assert following.default.version == 1


def test_replaced_content_is_served_and_broken_content_is_not(following: Following) -> None:
    first = following.default.digest
    shutil.rmtree(following.root / "affine" / "1")
    write_affine(following.root / "affine" / "1", scale=2.0)
    following.look()
    second = following.default.digest
    assert second != first
    damage(following.root / "affine" / "1")
    following.look()
    assert following.default.digest == second
    state, reason = following.lines()[1]
    assert state is State.READY
    assert reason.startswith("what replaced its files is not served: ")


def test_content_that_is_away_for_a_moment_is_served_all_the_while(following: Following) -> None:
    write_affine(following.root / "affine" / "2", scale=2.0)
    following.look()
    shutil.rmtree(following.root / "affine" / "2")
    following.look(1)
    assert following.default.version == 2
    write_affine(following.root / "affine" / "2", scale=3.0)
    following.look(1)
    assert following.default.version == 2
    following.look(1)
    assert following.default.version == 2
    assert following.lines()[2] == (State.READY, "")


def test_the_last_version_that_works_stays_though_its_files_are_gone(
    following: Following,
) -> None:
    write_affine(following.root / "affine" / "2")
    following.look()
    damage(following.root / "affine" / "1")
    shutil.rmtree(following.root / "affine" / "2")
    following.look(4)
    assert following.default.version == 2
    assert "it is gone from the repository" in following.lines()[2][1]
    until = time.monotonic() + 30
    while following.lines()[1][0] is State.UNLOADING:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert following.lines()[1][0] is State.UNAVAILABLE


def test_a_model_that_is_taken_away_is_unknown_and_the_server_stays_ready(
    following: Following,
) -> None:
    shutil.rmtree(following.root / "affine")
    following.look()
    with pytest.raises(NotFoundError):
        following.repository.find("affine", "")
    assert following.repository.names == ["other"]
    assert following.repository.is_ready()


def test_a_name_that_another_model_had_can_be_taken_once_that_has_gone(root: Path) -> None:
    write_affine(root / "affine.more" / "1")
    write_affine(root / "affine" / "2", methods=["forward", "more"])
    following = Following(root)
    following.look(4)
    assert "is the name of another model" in following.lines()[2][1]
    # It is tried at every look, and that is one failure as long as nothing changes.
    assert following.repository.loads()["affine", False] == 1
    os.utime(root / "affine" / "2" / "program.pb")
    following.look(4)
    assert following.repository.loads()["affine", False] == 2
    assert following.repository.find("affine.more", "").version == 1
    shutil.rmtree(root / "affine.more")
    following.look(3)
    assert following.lines()[2] == (State.READY, "")
    assert following.repository.find("affine.more", "").version == 2
    following.repository.close()


def test_a_model_that_comes_later_is_served(following: Following) -> None:
    write_affine(following.root / "late" / "4")
    following.look()
    assert following.repository.find("late", "").version == 4


@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_repository_that_vanishes_changes_nothing_and_may_come_back(
    following: Following, is_emptied: bool
) -> None:
    away = following.root.with_name("away")
    following.root.rename(away)
    if is_emptied:
        following.root.mkdir()  # such as where nothing is mounted
    for _ in range(3):
        with pytest.raises(StartupError, match=r"what is loaded goes on|No such file"):
            following.look(1)
    assert following.default.version == 1
    if is_emptied:
        following.root.rmdir()
    away.rename(following.root)
    write_affine(following.root / "affine" / "2")
    following.look()
    assert following.default.version == 2


def test_a_policy_of_several_versions_serves_them_side_by_side(root: Path) -> None:
    following = Following(root, VersionPolicy(latest=2))
    for version in (2, 3):
        write_affine(root / "affine" / str(version))
    following.look()
    assert following.repository.ready_versions("affine") == [2, 3]
    shutil.rmtree(root / "affine" / "3")
    following.look()
    assert following.repository.ready_versions("affine") == [1, 2]
    following.repository.close()


def test_named_versions_are_served_and_no_others(root: Path) -> None:
    following = Following(root, VersionPolicy(only=frozenset({1, 3})))
    for version in (2, 3):
        write_affine(root / "affine" / str(version))
    following.look()
    assert following.repository.ready_versions("affine") == [1, 3]
    following.repository.close()


def test_a_version_that_memory_does_not_suffice_for_is_tried_again(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_affine(following.root / "affine" / "2")
    with monkeypatch.context() as patch:
        patch.setattr(Host, "available_memory", lambda self: 0)
        following.look(3)
        assert following.default.version == 1
        assert "and 0 are free" in following.lines()[2][1]
        assert following.repository.loads()["affine", False] == 1
    following.look(1)
    loaded = following.default
    assert loaded.version == 2
    following.look()
    assert following.default is loaded  # and is not loaded again and again


def test_the_log_says_once_that_memory_does_not_suffice_though_less_or_more_is_free(
    following: Following, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (2, 3):
        write_affine(following.root / "affine" / str(version))
        with monkeypatch.context() as patch:
            for free in range(4):
                patch.setattr(Host, "available_memory", lambda self, free=free: free)
                following.look()
        # Whoever asks for the reason is told of the last look.
        assert "and 3 are free" in following.lines()[version][1]
    texts = [text for text in caplog.messages if "bytes of memory" in text]
    assert [text.split(": ")[0] for text in texts] == [
        f"model 'affine' version {version} is unavailable" for version in (2, 3)
    ]


def test_what_is_asked_for_is_tried_again_though_its_files_look_the_same(
    following: Following,
) -> None:
    write_affine(following.root / "affine" / "2")
    program = following.root / "affine" / "2" / "program.pb"
    content, status = program.read_bytes(), program.stat()

    def replace(content: bytes) -> None:
        program.write_bytes(content)
        os.utime(program, ns=(status.st_atime_ns, status.st_mtime_ns))

    replace(content[:-1] + bytes([content[-1] ^ 1]))
    following.look()
    assert following.lines()[2][0] is State.UNAVAILABLE
    replace(content)
    following.look()
    assert following.lines()[2][0] is State.UNAVAILABLE
    following.update()
    assert following.lines()[2] == (State.READY, "")


def test_what_is_loaded_goes_on_while_its_directory_cannot_be_read(following: Following) -> None:
    directory = following.root / "affine"
    directory.rename(following.root.with_name("away"))
    directory.symlink_to(directory)
    following.look(3)
    assert following.default.version == 1
    assert "cannot be read" in following.lines()[0][1]
    directory.unlink()
    following.root.with_name("away").rename(directory)
    following.look(3)
    assert following.lines() == {1: (State.READY, "")}


@pytest.fixture
def swapping(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    following = Following(root)
    following.loader = Loader(CPU, Environment(), snapshot=True, swaps=True)
    monkeypatch.setattr(Host, "available_memory", lambda self: 0)
    yield following
    following.repository.close()


def test_a_swap_serves_the_new_version_after_the_old_one_has_gone(swapping: Following) -> None:
    old = swapping.default
    write_affine(swapping.root / "affine" / "2")
    swapping.look()
    assert swapping.default.version == 2
    assert old not in swapping.repository.models


def test_a_swap_that_fails_brings_the_old_version_back(swapping: Following) -> None:
    write_affine(swapping.root / "affine" / "2")
    damage(swapping.root / "affine" / "2")
    swapping.look()
    assert swapping.default.version == 1
    assert swapping.lines()[1] == (State.READY, "")
    assert swapping.lines()[2][0] is State.UNAVAILABLE


def test_a_swap_of_content_that_fails_is_not_called_ready(swapping: Following) -> None:
    damage(swapping.root / "affine" / "1")
    swapping.look()
    assert swapping.lines()[1][0] is State.UNAVAILABLE
    with pytest.raises(UnavailableError, match="it could not be loaded"):
        swapping.repository.find("affine", "")
    assert not swapping.repository.is_ready()


class Answer:
    """A reply that counts its answers, and can hold up whoever gives them."""

    method = "ModelInfer"
    metadata = ()

    def __init__(self) -> None:
        self.cancelled = False
        self.given = 0
        self.may_go_on = threading.Event()

    def respond(self, message: bytes) -> None:
        self.given += 1
        self.may_go_on.wait(30)

    def fail(self, error: Exception) -> None:
        self.given += 100


def request_for(repository: Repository) -> InferenceRequest:
    from slipway.proto import open_inference_pb2 as protocol
    from slipway.serving.request_reader import RequestReader

    message = protocol.ModelInferRequest(model_name="affine", raw_input_contents=[bytes(16)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    return RequestReader(repository).read(message.SerializeToString())


def test_a_version_that_goes_answers_its_last_request_first(following: Following) -> None:
    model, answer = following.default, Answer()
    pending = PendingRequest(request_for(following.repository), answer, arrived=0.0)
    model.scheduler.submit(pending)
    model.scheduler.run_pending()
    write_affine(following.root / "affine" / "2")
    following.look()
    assert following.default.version == 2
    assert following.lines()[1] == (State.UNLOADING, "")
    answer.may_go_on.set()
    following.repository.close()
    assert answer.given == 1
    assert 1 not in following.lines()


def test_a_model_that_is_unloaded_answers_its_last_request_before_the_repository_is_closed(
    following: Following,
) -> None:
    model, answer = following.default, Answer()
    model.scheduler.submit(PendingRequest(request_for(following.repository), answer, arrived=0.0))
    model.scheduler.run_pending()
    following.repository.unwant("affine")
    following.update()
    assert following.lines()[1] == (State.UNLOADING, "")
    closing = threading.Thread(target=following.repository.close, daemon=True)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    answer.may_go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert following.lines()[1] == (State.UNAVAILABLE, "unloaded")


def test_every_change_is_told(following: Following) -> None:
    before, generation = following.changes, following.repository.generation
    following.look()
    assert following.repository.generation == generation
    unchanged = following.changes
    write_affine(following.root / "affine" / "2")
    following.look()
    assert following.repository.generation > generation
    assert following.changes - unchanged > unchanged - before


def test_only_what_is_asked_for_is_loaded_and_the_rest_is_listed(root: Path) -> None:
    following = Following(root, only=["other"])
    assert following.repository.names == ["other"]
    assert following.lines() == {0: (State.UNAVAILABLE, "not loaded")}
    following.repository.want("affine")
    following.update(name="affine")
    assert following.lines() == {1: (State.READY, "")}
    following.repository.unwant("affine")
    following.update(name="affine")
    assert following.lines() == {1: (State.UNAVAILABLE, "unloaded")}
    with pytest.raises(UnavailableError, match="'affine' has no available versions: it is unload"):
        following.repository.find("affine", "")
    following.repository.want("affine")
    following.update(name="affine")
    assert following.default.version == 1
    following.repository.close()


def test_a_model_to_load_that_is_not_there_is_exit_code_2(root: Path) -> None:
    with pytest.raises(StartupError, match="has no model missing to load; it has affine, other"):
        Repository(root, only=["missing", "affine"])


def test_the_collector_looks_at_everything_again_once_something_is_unloaded(
    following: Following,
) -> None:
    gc.freeze()
    shutil.rmtree(following.root / "other")
    following.look()
    deadline = time.monotonic() + 30
    while gc.get_freeze_count():
        assert time.monotonic() < deadline
        time.sleep(0.01)
