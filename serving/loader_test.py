from __future__ import annotations

import gc
import os
import resource
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from slipway.program import Method
from slipway.serving.host import Host
from slipway.serving.loader import Loader, LoadError
from slipway.serving.model import Environment, Model
from slipway.serving.processors import Processors
from slipway.tests.serving.programs import write_affine

CPU = Host(Processors(1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "affine" / "1"
    write_affine(directory)
    return directory


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def load(path: Path, *taken: str, snapshot: bool = False) -> list[Model]:
    loader = Loader(CPU, Environment(), snapshot=snapshot)
    return loader.load(path, "affine", 1, {}, lambda name: name in taken)


def test_what_is_loaded_takes_requests(path: Path) -> None:
    (model,) = load(path)
    assert (model.name, model.version) == ("affine", 1)
    model.scheduler.close()


def test_a_damaged_version_says_what_is_wrong_and_no_path_of_the_server(path: Path) -> None:
    program = path / "program.pb"
    program.write_bytes(program.read_bytes()[:-1])
    with pytest.raises(LoadError) as caught:
        load(path)
    assert "affine/1" in str(caught.value)
    assert str(path.parent.parent) not in str(caught.value)
    assert not caught.value.is_passing


@pytest.mark.parametrize("snapshot", [False, True])
def test_weights_that_were_altered_are_not_served(path: Path, snapshot: bool) -> None:
    (shard,) = (path / "weights").iterdir()
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LoadError, match="SHA-256 differs"):
        load(path, snapshot=snapshot)


def test_a_name_that_is_taken_is_refused_and_leaves_no_thread(path: Path) -> None:
    with pytest.raises(LoadError, match="would be served as 'affine', which is the name of"):
        load(path, "affine")


def test_a_snapshot_outlives_its_files(path: Path) -> None:
    (model,) = load(path, snapshot=True)
    (shard,) = (path / "weights").iterdir()
    shard.write_bytes(b"")  # a mapping of it would end the process
    model.executor.warm_up([(2,)])
    assert (2,) in model.executor.recent_bindings
    model.scheduler.close()


def test_a_version_is_warmed_up_for_what_the_one_before_it_got(path: Path) -> None:
    (old,) = load(path)
    # 99 breaks the contract, and another version's contract may have had more symbols.
    old.executor.warm_up([(3,), (5,), (99,), (3, 1)])
    (new,) = Loader(CPU, Environment()).load(path, "affine", 2, {"affine": old}, lambda _: False)
    assert new.executor.recent_bindings == [(3,), (5,)]
    old.scheduler.close()
    new.scheduler.close()


def test_a_closed_version_lets_go_of_its_program_whoever_still_has_the_model(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = load(path)
    original, ran = Method.run, []

    def run(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        ran.append(weakref.ref(self))
        return original(self, tensors)

    monkeypatch.setattr(Method, "run", run)
    model.executor.warm_up([(3,)])
    assert ran[0]() is not None
    model.scheduler.close()
    gc.collect()
    assert ran[0]() is None


def test_zeros_that_mean_nothing_to_a_model_are_no_hindrance(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model,) = load(path)

    def fail(self: Method, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("zero")

    monkeypatch.setattr(Method, "run", fail)
    model.executor.warm_up([(3,)])
    assert model.executor.recent_bindings == []
    model.scheduler.close()


def test_a_lack_of_the_machine_is_told_apart_from_a_fault_of_the_files(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptor = (path / "program.pb").open("rb")
    with descriptor:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor.fileno() + 1, limits[1]))
        try:
            with pytest.raises(LoadError) as caught:
                load(path, snapshot=True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.is_passing


def test_a_lack_of_memory_is_told_and_passes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has an error of its own where weights cannot be copied, and one where not mapped."""
    file = path / "large"
    file.touch()
    os.truncate(file, 2**43)
    failures: list[Callable[[], object]] = [
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: [torch.UntypedStorage.from_file(str(file), False, 2**43) for _ in range(32)],
    ]
    for fail in failures:
        monkeypatch.setattr("slipway.serving.loader.load", lambda *_, f=fail, **__: f())
        with pytest.raises(LoadError, match=r"^there is too little memory to load it: ") as caught:
            load(path)
        assert caught.value.is_passing


class SmallHost(Host):
    """The host as if it had little memory, which counts the batches that it runs."""

    def __init__(self) -> None:
        super().__init__(Processors(1))
        self.batches = 0

    def available_memory(self) -> int:
        return 10

    def run(self, *args: Any, **kwargs: Any) -> tuple[list[torch.Tensor], float]:
        self.batches += 1
        return super().run(*args, **kwargs)


def test_what_needs_more_memory_than_there_is_says_how_much(path: Path) -> None:
    device = SmallHost()
    assert Loader(device, Environment(), snapshot=False).lack_of_memory(path, "affine") == ""
    lack = Loader(device, Environment(), snapshot=True).lack_of_memory(path, "affine")
    assert "bytes of memory on cpu, and 10 are free" in lack


def test_models_run_on_devices_of_their_own(path: Path) -> None:
    own = SmallHost()
    loader = Loader(CPU, Environment(), snapshot=True, model_devices={"affine": own})
    assert loader.devices == [CPU, own]
    assert "10 are free" in loader.lack_of_memory(path, "affine")
    assert loader.lack_of_memory(path, "another") == ""
    for name, expected in (("affine", 1), ("another", 1)):
        (model,) = loader.load(path, name, 1, {}, lambda _: False)
        model.executor.warm_up([(2,)])
        model.scheduler.close()
        assert own.batches == expected
