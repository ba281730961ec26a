"""torch_server: a server and its programs as one runnable target."""

load("//program/private:common_attributes.bzl", "common_attributes")
load("//program/private:custom_ops.bzl", "custom_ops_info", "main_providers")
load("//program/private:labels.bzl", "label_text")
load("//program/private:runfiles.bzl", "rlocation_path")
load("//serving:providers.bzl", "TorchModelRepositoryInfo")
load(":torch_model_repository.bzl", "torch_model_repository")

_MAIN = '''"""Starts {label}. torch_server wrote this file."""

import sys

from slipway.serving.bundle import run

if __name__ == "__main__":
    sys.exit(run({program}, {flags}, {config}))
'''

def _flags(ctx):
    flags = ["--device=" + ctx.attr.device] if ctx.attr.device else []
    if ctx.attr.compiled:
        flags.append("--compiled=" + ctx.attr.compiled)
    return flags

def _server_main_impl(ctx):
    repository = ctx.attr.repository[TorchModelRepositoryInfo]
    custom_ops = custom_ops_info(ctx, ctx.attr.custom_ops, inherited = [repository.custom_ops])
    ctx.actions.write(
        output = ctx.outputs.main,
        # A list of strings in JSON is one in Python too.
        content = _MAIN.format(
            label = label_text(ctx.label).removesuffix(".main"),
            program = json.encode(repository.rlocation_path),
            flags = json.encode(_flags(ctx) + ctx.attr.flags + [
                "--custom-ops=" + module
                for module in custom_ops.modules.to_list()
            ]),
            config = json.encode(rlocation_path(ctx, ctx.file.config) if ctx.file.config else ""),
        ),
    )
    return main_providers(ctx, custom_ops, ctx.files.config)

_server_main = rule(
    implementation = _server_main_impl,
    attrs = {
        "compiled": attr.string(values = ["", "auto", "never", "require"]),
        "config": attr.label(allow_single_file = [".toml"]),
        "custom_ops": attr.label_list(),
        "device": attr.string(),
        "flags": attr.string_list(),
        "main": attr.output(mandatory = True),
        "repository": attr.label(mandatory = True, providers = [TorchModelRepositoryInfo]),
    },
)

def torch_server(*, name, programs, device = None, config = None, compiled = None, custom_ops = [], flags = [], **kwargs):
    """A server of `programs`: `bazel run` it, or ship it with its runfiles.

    What the flags given here say wins over the file, and flags on the command line win over both:
    `bazel run :NAME -- --port=0`. `bazel run :NAME -- --check` says what that comes to.

    Example:

        torch_server(
            name = "server",
            programs = {"//examples/mlp": "mlp/1"},
            flags = ["--port=9001"],
        )

    Args:
      name: of the py_binary. `NAME.repository` is the torch_model_repository.
      programs: from the label of each program to its place MODEL/VERSION, the version an integer
        from 1. A client asks for MODEL, and gets the highest version unless it names another.
      device: `cpu`, `cuda:N` or `auto`; unless it is given, what `config` says, or `cpu`.
      config: a TOML file (docs/configuration.md). Its paths count from where it lies among the
        runfiles: the files that they name must be in `data`, or have absolute paths.
      compiled: whether compiled code of the programs runs: `never`; `auto`, where it is made for
        the machine; or `require`, so that a program without is not served. Unless it is given, what
        `config` says, or `auto`: it is native code of the same build as the server. With
        `--repository` on the command line it is `never` unless it is said.
      custom_ops: py_library targets that register operators, beside those that the programs were
        exported with, which the server imports anyway.
      flags: of the server; `bazel run //serving:server -- --help` lists them.
      **kwargs: as for `py_binary`.
    """
    common = common_attributes(kwargs, "testonly")
    repository = name + ".repository"
    torch_model_repository(
        name = repository,
        programs = programs,
        **common
    )
    main = name + "_main.py"
    _server_main(
        name = name + ".main",
        compiled = compiled,
        config = config,
        custom_ops = custom_ops,
        device = device,
        flags = flags,
        main = main,
        repository = ":" + repository,
        **common
    )
    native.py_binary(
        name = name,
        srcs = [main],
        main = main,
        data = kwargs.pop("data", []) + [":" + repository],
        deps = kwargs.pop("deps", []) + [":%s.main" % name, Label("//serving")],
        **kwargs
    )
