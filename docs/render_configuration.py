"""Renders docs/configuration.md from the settings that the server has.

`bazel run //docs:write_configuration` writes the file anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from slipway.serving.configuration import ModelSettings, Setting, sections, settings_of

__all__ = ["render"]

_HEAD = """\
# Configuration

A server needs no configuration but a repository: `--repository DIR`. Everything else has a default,
a flag, and a key in a file in [TOML](https://toml.io), which `--config FILE` names:

```toml
[server]
host = "0.0.0.0"

[repository]
path = "models"          # counts from where this file lies, as every path in it
model_control = "poll"

[scheduling]
max_batch_size = 32

[models.ranker]
labels = { stable = 7, canary = 8 }
shares = { canary = 10.0 }
max_queue_requests = 200

[security]
tls_certificate = "server.pem"
tls_key = "server.key"
control_tokens = "operators.tokens"
```

A flag wins over the file; a flag that may be repeated adds to the file's list.

A file of a [`torch_server`](rules.md#torch_server) is its attribute `config`. Paths in it count
from where it lies among the server's runfiles, with what is checked in and what the build makes
side by side: in `models/server.toml`, `tls_certificate = "server.pem"` is `//models:server.pem`,
which must be in `data`. What is no part of the build, such as a private key, needs an absolute
path.

`--check` says everything that is wrong, with file, line and key, or with the flag: first with each
key, then with those that contradict each other, then with what they name (the repository,
certificates, tokens, the device, libraries of operators). It prints what is in force as a file,
with 0 as exit code, or 2 if something must change:

```
$ server --config=/srv/ml.toml --check
slipway: error: /srv/ml.toml:9: unknown key 'instance' in [scheduling]; did you mean 'instances'?
/srv/ml.toml:14: max_queue_requests is 0; it must be in 1..2147483647
```

The tables below are made from the server's own: `./bazelw run //docs:write_configuration` writes
this page anew.
"""

_INTRODUCTIONS = {
    "security": "[Security](serving.md#security) says what these mean together.",
    "models": 'NAME is the model\'s directory. A name with a dot is in quotes: `[models."a.b"]`.',
}


def render() -> str:
    """Returns the page."""
    parts = [_HEAD]
    for name, section in sections().items():
        parts.append(_section(name, f"[{name}]", section))
        if name == "scheduling":
            parts.append(_section("models", "[models.NAME]", ModelSettings))
    return "\n".join(parts)


def _section(name: str, title: str, section: type) -> str:
    lines = [f"## `{title}`", "", section.__doc__ or "", ""]
    if name in _INTRODUCTIONS:
        lines += [_INTRODUCTIONS[name], ""]
    settings = settings_of(section).values()
    has_flags = any(setting.flag for setting in settings)
    columns = ["key", *(["flag"] if has_flags else []), "type", "what it is", "default"]
    lines += [_row(columns), _row(["---"] * len(columns))]
    for setting in settings:
        flag = [f"`{_flag(setting)}`"] if has_flags else []
        kind = setting.type_text + (f", {setting.bounds_text}" if setting.bounds_text else "")
        lines.append(_row([f"`{setting.name}`", *flag, kind, setting.help, _default(setting)]))
    return "\n".join(lines) + "\n"


def _flag(setting: Setting) -> str:
    if setting.kind is bool:
        return f"--[no-]{setting.flag.removeprefix('--')}"
    return f"{setting.flag} {setting.metavar or setting.name.upper()}"


def _default(setting: Setting) -> str:
    if setting.default in (None, (), {}):
        return "none"
    if isinstance(setting.default, bool):
        return f"`{str(setting.default).lower()}`"
    if isinstance(setting.default, str):
        return f'`"{setting.default}"`'
    return f"`{setting.default}`"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Writes the page where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.parse_args().output.write_text(render())


if __name__ == "__main__":
    main()
