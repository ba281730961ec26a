"""The main programs of the tests that macros make: Python files with what only a rule knows."""

load("//program:providers.bzl", "TorchProgramInfo")
load(":custom_ops.bzl", "custom_ops_info", "main_providers")
load(":labels.bzl", "command_word", "label_text")
load(":runfiles.bzl", "rlocation_path")

_MAIN = '''"""Tests {label}. A rule wrote this file."""

import sys

from slipway.program.{module} import run

if __name__ == "__main__":
    sys.exit(run(*{arguments}))
'''

def _write_main(ctx, module, arguments):
    ctx.actions.write(
        output = ctx.outputs.main,
        # A list of strings and lists in JSON is one in Python too.
        content = _MAIN.format(
            arguments = json.encode(arguments),
            label = label_text(ctx.label),
            module = module,
        ),
    )

def _self_check_main_impl(ctx):
    info = ctx.attr.program[TorchProgramInfo]
    custom_ops = custom_ops_info(ctx, ctx.attr.custom_ops, inherited = [info.custom_ops])
    _write_main(ctx, "self_check", [
        rlocation_path(ctx, info.program),
        label_text(info.label),
        custom_ops.modules.to_list(),
    ])
    return main_providers(ctx, custom_ops, [info.program])

self_check_main = rule(
    implementation = _self_check_main_impl,
    doc = "Writes the main program of a torch_program_test, and brings the operators that it imports.",
    attrs = {
        "custom_ops": attr.label_list(),
        "main": attr.output(mandatory = True),
        "program": attr.label(mandatory = True, providers = [TorchProgramInfo]),
    },
)

def _baseline_file(ctx):
    """Returns the one file or directory that the baseline is."""
    baseline = ctx.attr.baseline
    if TorchProgramInfo in baseline:
        return baseline[TorchProgramInfo].program
    files = baseline[DefaultInfo].files.to_list()
    if len(files) == 1 and files[0].extension in ["json", "program"]:
        return files[0]
    fail("%s: the baseline %s must be a program, as torch_export makes it, or one .json file, as `python -m slipway.program baseline PROGRAM` writes it; it has %s" % (
        label_text(ctx.label),
        label_text(baseline.label),
        [file.basename for file in files] or "no files",
    ))

def _compatibility_main_impl(ctx):
    info = ctx.attr.program[TorchProgramInfo]
    baseline = _baseline_file(ctx)
    update = ""
    if baseline.is_source and baseline.extension == "json":
        update = "bazel run %s -- baseline %s > %s" % (
            command_word(label_text(ctx.attr._cli.label)),
            command_word(info.program.path),
            command_word(baseline.short_path),
        )
    _write_main(ctx, "compatibility_check", [
        rlocation_path(ctx, baseline),
        label_text(ctx.attr.baseline.label),
        rlocation_path(ctx, info.program),
        label_text(info.label),
        update,
        "true" if ctx.attr.python_callers else "",
    ])
    return main_providers(ctx, custom_ops_info(ctx, []), [baseline, info.program])

compatibility_main = rule(
    implementation = _compatibility_main_impl,
    doc = "Writes the main program of a torch_program_compatibility_test.",
    attrs = {
        "baseline": attr.label(mandatory = True, allow_files = True),
        "main": attr.output(mandatory = True),
        "program": attr.label(mandatory = True, providers = [TorchProgramInfo]),
        "python_callers": attr.bool(),
        "_cli": attr.label(default = Label("//program:cli")),
    },
)
