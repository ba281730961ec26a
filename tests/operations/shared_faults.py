"""Faults that a server is to live through, without one failed request of other clients."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from slipway.tests.operations import http2
from slipway.tests.operations.load import (
    INFER,
    affine_request,
    echo_request,
    infer,
    open_channel,
    power_request,
    wait_until,
)
from slipway.tests.operations.proxy import Proxy
from slipway.tests.operations.repository_changes import damage, has_reason, is_gone, is_ready
from slipway.tests.operations.scene import Scene, descriptors, memory
from slipway.tests.serving.programs import write_affine

__all__ = ["FAULTS"]

_CONNECTIONS = 1000
_HUGE = 3 * 2**30
_MIB = 2**20

_GARBAGE = (
    random.Random(1).randbytes(_MIB),
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
    bytes.fromhex("16030100c8010000c40303") + random.Random(2).randbytes(194),
    http2.greeting() + random.Random(3).randbytes(_MIB),
    http2.greeting() + http2.frame(1, 4, 1, random.Random(4).randbytes(1000)),
    http2.greeting() + http2.frame(9, 4, 1, b"") + http2.frame(0, 1, 77, b"x"),
    http2.greeting() + http2.call_headers() + http2.frame(0, 1, 1, b"\x07\xff\xff\xff\xff"),
)
"""Noise, another protocol, TLS, and HTTP/2 that is broken at each of its levels."""


def corrupt_version(scene: Scene) -> None:
    """A new version is damaged, and then so is the one that is being served."""
    write_affine(scene.root / "affine" / "2", scale=2.0)
    damage(scene.root / "affine" / "2")
    scene.control.await_index(has_reason(2), "a reason for version 2")
    shutil.rmtree(scene.root / "affine" / "2")
    scene.control.await_index(is_gone(2), "the end of version 2")
    program = scene.root / "affine" / "1" / "program.pb"
    content = program.read_bytes()
    program.write_bytes(content[: len(content) // 2])
    scene.control.await_index(has_reason(1), "a reason for version 1")
    program.write_bytes(content)
    scene.control.await_index(is_ready(1), "version 1 as it was")


def full_disk(scene: Scene) -> None:
    """The disk is full in the middle of the copy of a new version."""
    whole = scene.root.parent / "whole"
    write_affine(whole, scale=3.0)
    version = scene.root / "affine" / "3"
    version.mkdir()
    with _little_room(version):
        try:
            shutil.copytree(whole, version, dirs_exist_ok=True)
        except (shutil.Error, OSError):
            pass
        else:
            raise AssertionError("there was room for all of it")
        scene.control.await_index(has_reason(3), "a reason for version 3")
    shutil.copytree(whole, version, dirs_exist_ok=True)
    scene.control.await_index(is_ready(3), "version 3, once there was room")
    shutil.rmtree(version)
    shutil.rmtree(whole)
    scene.control.await_index(is_gone(3), "the end of version 3")


@contextlib.contextmanager
def _little_room(directory: Path) -> Iterator[None]:
    """Bounds what can be written to a directory: a small file system, or else small files."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(directory)]
    if os.geteuid() == 0 and not subprocess.run(mount, check=False, capture_output=True).returncode:
        print("full_disk: a file system of 4 KiB", flush=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        return
    print("full_disk: files of at most 1000 bytes, since nothing can be mounted", flush=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def vanishing_repository(scene: Scene) -> None:
    """The repository's directory is away for a while, as when a network file system is."""
    away = scene.root.with_name("away")
    scene.root.rename(away)
    lines = scene.end_of_log
    wait_until(lambda: "cannot read the model repository" in lines(), "a word in the log")
    scene.probe()
    away.rename(scene.root)
    scene.control.await_index(is_ready(1), "version 1")


def client_that_stops_reading(scene: Scene) -> None:
    """A client asks for much and reads nothing of it; later it reads on."""
    with Proxy(scene.address) as proxy, open_channel(proxy.address) as channel:
        infer(channel, echo_request(_MIB))
        proxy.is_stalled = True
        message = echo_request(_MIB).SerializeToString()
        calls = [channel.unary_unary(INFER).future(message, timeout=120) for _ in range(64)]
        for _ in range(3):
            scene.probe()
        assert not all(call.done() for call in calls)
        proxy.is_stalled = False
        assert all(len(call.result()) > _MIB for call in calls)


def dying_clients(scene: Scene) -> None:
    """Clients go in the middle of a request, of an answer, and of a batch."""
    before = descriptors(scene.pid)
    for _ in range(5):
        with Proxy(scene.address) as proxy, open_channel(proxy.address) as channel:
            message = echo_request(8 * _MIB).SerializeToString()
            calls = [channel.unary_unary(INFER).future(message) for _ in range(2)]
            slow = power_request(512).SerializeToString()
            calls += [channel.unary_unary(INFER).future(slow) for _ in range(3)]
            quick = affine_request("dying").SerializeToString()
            calls.append(channel.unary_unary(INFER).future(quick, timeout=60))
            calls[-1].exception()
            calls[2].cancel()
            proxy.cut()
            for call in calls[:-1]:
                call.cancel()
    wait_until(lambda: descriptors(scene.pid) <= before + 2, "the connections' ends")


def slow_clients(scene: Scene) -> None:
    """Clients that send a few bytes at a time get their answers all the same."""
    with contextlib.ExitStack() as stack:
        calls = []
        for _ in range(8):
            proxy = stack.enter_context(Proxy(scene.address))
            proxy.bytes_per_second = 400
            channel = stack.enter_context(open_channel(proxy.address))
            message = affine_request("slow", rows=8).SerializeToString()
            calls.append(channel.unary_unary(INFER).future(message, timeout=120))
        scene.probe()
        assert all(call.result() for call in calls)


def half_open_connections(scene: Scene) -> None:
    """A thousand connections are opened on which nothing follows, or half of a greeting."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = descriptors(scene.pid)
    with contextlib.ExitStack() as stack:
        for index in range(_CONNECTIONS):
            connection = stack.enter_context(_connected(scene))
            if index % 2:
                connection.sendall(http2.greeting()[:-5])
        scene.probe()
    wait_until(lambda: descriptors(scene.pid) <= before + 2, "the connections' ends")


def garbage_bytes(scene: Scene) -> None:
    """The port gets bytes that are no gRPC, and gRPC messages that are no requests."""
    for garbage in _GARBAGE:
        with _connected(scene) as connection, contextlib.suppress(OSError):
            connection.settimeout(1)
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    with open_channel(scene.address) as channel:
        for garbage in _GARBAGE:
            try:
                channel.unary_unary(INFER)(garbage[:65536], timeout=60)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
            else:
                raise AssertionError("garbage got an answer")


def huge_message(scene: Scene) -> None:
    """A message is announced as one of 3 GB; it is refused before it takes any memory."""
    before = memory(scene.pid, "VmHWM")
    with _connected(scene) as connection:
        connection.settimeout(60)
        connection.sendall(http2.greeting() + http2.call_headers())
        connection.sendall(http2.message_start(_HUGE, bytes(16000)))
        end = http2.read_end(connection)
    assert b"grpc-status\x018" in end, end[-500:]  # RESOURCE_EXHAUSTED
    assert memory(scene.pid, "VmHWM") - before < 512 * _MIB


def descriptor_limit(scene: Scene) -> None:
    """The server may open no further file or connection, and later it may again."""
    scene.control.index()  # over a connection that is there before
    limits = resource.prlimit(scene.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(scene.pid, resource.RLIMIT_NOFILE, (descriptors(scene.pid) + 4, limits[1]))
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(_connected(scene))
        write_affine(scene.root / "affine" / "4", scale=4.0)
        wait_until(lambda: "Too many open files" in scene.end_of_log(), "a word in the log")
        assert not is_ready(4)(scene.control.index())
    resource.prlimit(scene.pid, resource.RLIMIT_NOFILE, limits)
    scene.control.await_index(is_ready(4), "version 4, once there were descriptors")
    shutil.rmtree(scene.root / "affine" / "4")
    scene.control.await_index(is_gone(4), "the end of version 4")


def _connected(scene: Scene) -> socket.socket:
    host, port = scene.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=60)


FAULTS: tuple[Callable[[Scene], None], ...] = (
    corrupt_version,
    full_disk,
    vanishing_repository,
    client_that_stops_reading,
    dying_clients,
    slow_clients,
    half_open_connections,
    garbage_bytes,
    huge_message,
    descriptor_limit,
)
"""To be done to one server after another."""
