from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipway.serving.command_line import parse
from slipway.serving.configuration import (
    Configuration,
    ModelSettings,
    Setting,
    sections,
    settings_of,
)
from slipway.serving.configuration_file import ConfigurationError, Document, read, to_toml


def write(directory: Path, text: str) -> Path:
    path = directory / "server.toml"
    path.write_text(text)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(path)
    assert caught.value.exit_code == 2
    return [text.replace(str(path), "FILE") for text in caught.value.problems]


def test_an_empty_file_is_every_default(tmp_path: Path) -> None:
    assert read(write(tmp_path, ""))[0] == Configuration()


def test_everything_that_is_wrong_is_said_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
# A comment, and a value of several lines.
[server]
custom_ops = [
  "a",  # = "b"
]
port = 70000
host = 1

[scheduling]
max_batchsize = 3
instances = "two"
batch_delay_ms = nan

[models.m]
labels = { stable = "1" }
shares = 3
[models.m.more]

[limits]
grace_seconds = 3

[servers]
""",
    )
    # The order is that of sections and keys.
    assert problems(path) == [
        "FILE:22: unknown section 'servers'; did you mean 'server'?",
        "FILE:7: host must be a string, not an integer",
        "FILE:6: port is 70000; it must be in 0..65535",
        "FILE:10: unknown key 'max_batchsize' in [scheduling]; did you mean 'max_batch_size'?",
        "FILE:11: instances must be an integer, not a string",
        "FILE:12: batch_delay_ms is nan; it must be in 0..60000",
        "FILE:20: unknown key 'grace_seconds' in [limits]; it belongs into [server]",
        "FILE:17: unknown key 'more' in [models.m]; there are version_policy, labels, shares, "
        "device, instances, max_batch_size, batch_delay_ms, max_queue_requests, max_queue_bytes",
        "FILE:15: labels.stable must be an integer, not a string",
        "FILE:16: shares must be a table of numbers, not an integer",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nport = 1\nport = 2\n", "FILE:3: this key or section is there twice"),
        ("[server]\n[limits]\n[server]\n", "FILE:3: this key or section is there twice"),
        ("[server]\nport 1\n", "FILE:2: Expected '=' after a key in a key/value pair"),
        ("[server]\nhost = 'x", 'FILE:2: Expected "\'"'),
        ("server = 1\n", "FILE:1: server must be a table: write [server]"),
        ("[[models]]\n", "FILE:1: models must be a table: write [models]"),
        ("[models]\nm = 1\n", "FILE:2: models.m must be a table: write [models.m]"),
        ("[server]\nport = true\n", "FILE:2: port must be an integer, not a boolean"),
        ('[server]\nhost = "a\\nb"\n', "FILE:2: host is 'a\\nb'; it must be printable text"),
        (
            '[repository]\nversion_policy = "newest"\n',
            "FILE:2: version_policy: 'newest' is no version policy",
        ),
        (
            '[repository]\nverify = "none"\n',
            'FILE:2: verify is \'none\'; it must be one of "full", "sizes"',
        ),
    ],
)
def test_one_thing_that_is_wrong(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems(write(tmp_path, text))
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[server]\nport = {'9' * 5000}\nhost = 1\n", "FILE:2: an integer has too many digits: "),
        (f"[server]\nport = 0x{'f' * 5000}\n", "FILE:2: port is an integer of 20000 bits; 64 are"),
        (
            f"[models.m]\nlabels = {{ a = 0x{'f' * 5000} }}\n",
            "FILE:2: labels.a is an integer of 20",
        ),
        (
            f"[server]\nport = 1\nhost = {'[' * 5000}",
            "FILE:3: lists or tables lie too deep in each",
        ),
        (f"[server]\nport = [\n{'[' * 900}\n{']' * 901}\n", "FILE:3: lists or tables lie too deep"),
        (f"[server]\na = {'{a = ' * 5000}", "FILE:2: lists or tables lie too deep in each other"),
    ],
    ids=["digits", "hexadecimal", "label", "lists", "whole lists", "tables"],
)
def test_what_is_too_much_to_read_is_one_clear_error(
    tmp_path: Path, text: str, expected: str
) -> None:
    (problem,) = problems(write(tmp_path, text))
    assert problem.startswith(expected)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == ["cannot read FILE: No such file or directory"]
    path = tmp_path / "binary.toml"
    path.write_bytes(b"[server]\n\xff = 1\n")
    assert problems(path) == ["FILE:2: it is not UTF-8, as TOML is"]


def test_paths_in_a_file_count_from_where_it_lies(tmp_path: Path) -> None:
    path = write(tmp_path, '[repository]\npath = "models"\n[security]\ntls_key = "/etc/key"\n')
    configuration, _ = read(path)
    assert configuration.repository.path == str(tmp_path / "models")
    assert configuration.security.tls_key == "/etc/key"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[monitoring]\nmetrics_port = 8001\n", "FILE:2: metrics_port and port are both 8001"),
        (
            "[server]\nprocesses = 3\n[monitoring]\nmetrics_port = 65534\n",
            "FILE:4: metrics_port is 65534, and each process takes one from there on",
        ),
        ('[security]\ntls_key = "k"\n', "FILE:2: tls_key needs tls_certificate beside it"),
        ('[security]\ntls_client_ca = "k"\n', "FILE:2: tls_client_ca needs tls_certificate"),
        ('[security]\ncontrol_identities = ["k"]\n', "FILE:2: control_identities needs tls_client"),
        ("[models.m]\nshares = { a = 1.0 }\n", "FILE:2: there is no label 'a'; the labels are:"),
        (
            "[models.m]\nlabels = { a = 1, b = 2 }\nshares = { a = 60, b = 41 }\n",
            "FILE:3: the shares are 101 percent in all; 100 is the most",
        ),
        ("[models.m]\nlabels = { 1 = 1 }\n", "FILE:2: the label '1' would be taken for a version"),
    ],
)
def test_values_that_do_not_go_together(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        parse([f"--config={path}", "--repository=r"])
    (problem,) = caught.value.problems
    assert problem.replace(str(path), "FILE").startswith(expected)


def test_what_is_wrong_with_a_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[monitoring]\nmetrics_port = 7\n[server]\nport = 7\n")
    text = "metrics_port and port are both"
    with pytest.raises(ConfigurationError, match=f"^{path}:2: {text} 7:"):
        parse([f"--config={path}", "--repository=r"])
    with pytest.raises(ConfigurationError, match=f"^--metrics-port: {text} 8:"):
        parse([f"--config={path}", "--repository=r", "--port=8", "--metrics-port=8"])


def test_routes_and_policies_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[models."a.b"]\nlabels = { stable = 1, canary = 2 }\nshares = { canary = 100 }\n',
    )
    route = parse([f"--config={path}", "--repository=r"]).configuration.models["a.b"].route
    assert route.choose(b"any") == 2


def test_flags_win_over_the_file_and_lists_are_joined(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
[server]
port = 1
custom_ops = ["a"]
[security]
control_from_loopback = false
[scheduling]
instances = 3
""",
    )
    line = parse(
        [f"--config={path}", "--repository=r", "--port=2", "--custom-ops=b", "--custom-ops=c"]
    )
    configuration = line.configuration
    assert configuration.server.port == 2
    assert configuration.server.custom_ops == ("a", "b", "c")
    assert configuration.scheduling.instances == 3
    assert not configuration.security.control_from_loopback
    again = parse([f"--config={path}", "--repository=r", "--control-from-loopback"])
    assert again.configuration.security.control_from_loopback
    assert not again.check


def test_native_code_that_came_with_a_server_runs_unless_something_else_is_said(
    tmp_path: Path,
) -> None:
    def parsed(text: str, *flags: str) -> tuple[str, str]:
        path = write(tmp_path, text)
        line = parse([f"--config={path}", "--bundle=/bundle", *flags])
        repository = line.configuration.repository
        assert repository.path is not None
        return repository.path, repository.compiled

    assert parsed("") == ("/bundle", "auto")
    assert parsed("[repository]\npath = 'other'\n") == ("/bundle", "auto")
    assert parsed("[repository]\ncompiled = 'never'\n") == ("/bundle", "never")
    assert parsed("", "--compiled=require") == ("/bundle", "require")
    # Others may write there.
    assert parsed("", "--repository=/other") == ("/other", "never")


def test_a_server_needs_a_repository() -> None:
    with pytest.raises(ConfigurationError, match="there is no repository: give --repository"):
        parse([])


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--port=65536", "argument --port: port is 65536; it must be in 0..65535"),
        ("--repository=", "argument --repository: expected a path, and got none"),
        ("--port=x", "argument --port: 'x' is no integer"),
        ("--prot=1", "unrecognized arguments: --prot=1"),
        ("--verify=no", "argument --verify: verify is 'no'"),
        ("--keepalive-seconds=inf", "argument --keepalive-seconds: keepalive_seconds is inf"),
    ],
)
def test_a_flag_that_is_wrong(flag: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--repository=r", flag])
    assert caught.value.code == 2
    usage, problem = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: server --repository=DIR ")
    assert expected in problem


def test_no_two_keys_have_one_flag() -> None:
    flags = [item.flag for section in sections().values() for item in settings_of(section).values()]
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") for flag in flags)


def test_models_override_only_what_scheduling_has() -> None:
    own = {"version_policy", "labels", "shares", "device"}
    scheduling = settings_of(sections()["scheduling"])
    assert set(settings_of(ModelSettings)) - own == set(scheduling)
    for name, setting in scheduling.items():
        of_model = settings_of(ModelSettings)[name]
        assert (of_model.minimum, of_model.maximum) == (setting.minimum, setting.maximum)


def _values(setting: Setting) -> st.SearchStrategy[Any]:
    texts = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=9)
    one: st.SearchStrategy[Any]
    if setting.choices:
        one = st.sampled_from(setting.choices)
    elif setting.name == "version_policy":
        one = st.sampled_from(["all", "latest:2", "1,2"])
    elif setting.kind is bool:
        one = st.booleans()
    elif setting.kind is str:
        # A path is read without the slash that it may end with.
        one = texts.map(lambda text: str(Path(f"/{text}"))) if setting.is_path else texts
    elif setting.kind is int:
        assert setting.minimum is not None
        assert setting.maximum is not None
        one = st.integers(int(setting.minimum), int(setting.maximum))
    else:
        one = st.floats(setting.minimum, setting.maximum)
    if setting.container is list:
        return st.lists(one, max_size=3).map(tuple)
    if setting.container is dict:
        return st.dictionaries(texts, one, max_size=3)
    return st.none() | one if setting.optional else one


def _settings(section: type) -> st.SearchStrategy[Any]:
    keys = {name: _values(setting) for name, setting in settings_of(section).items()}
    return st.builds(section, **keys)


_configurations = st.builds(
    Configuration,
    models=st.dictionaries(st.text(min_size=1, max_size=9), _settings(ModelSettings), max_size=2),
    **{name: _settings(section) for name, section in sections().items()},
)


@settings(max_examples=25)
@given(configuration=_configurations)
def test_what_is_printed_is_read_as_the_same(
    configuration: Configuration, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("configuration") / "server.toml"
    path.write_bytes(to_toml(configuration).encode())
    again, _ = read(path)
    for item in dataclasses.fields(Configuration):
        mine, others = getattr(configuration, item.name), getattr(again, item.name)
        if item.name == "repository" and mine.path is not None:
            mine = dataclasses.replace(mine, path=str(Path(mine.path).absolute()))
        assert mine == others


@given(
    blank=st.lists(st.sampled_from(["", "# port = 1", "  "]), max_size=4),
    value=st.sampled_from(["1", "[\n1,\n2 ]", '"""\nport = 3\n[x]\n"""', "{ a = 1 }"]),
)
def test_the_line_of_a_key_is_where_its_statement_begins(blank: list[str], value: str) -> None:
    before = ["[first]", f"other = {value}", *blank]
    text = "\n".join([*before, f"port = {value}", "last = 1"])
    line = "\n".join(before).count("\n") + 2
    assert Document("F", text).problem(("first", "port"), "x") == f"F:{line}: x"
    assert Document("F", text).problem(("first", "none"), "x") == "x"
