"""golden_test: a generated file equals one that is checked in, and one command updates that."""

load("@bazel_skylib//lib:shell.bzl", "shell")
load("@bazel_skylib//rules:diff_test.bzl", "diff_test")
load(":common_attributes.bzl", "common_attributes")
load(":labels.bzl", "attribute_label", "command_word", "label_text")

_SCRIPT = """#!/usr/bin/env bash
# Updates a golden file in the workspace. A rule wrote this script.
set -euo pipefail
if [[ -z ${{BUILD_WORKSPACE_DIRECTORY:-}} ]]; then
  echo >&2 {advice}
  exit 2
fi
cat {source} > "$BUILD_WORKSPACE_DIRECTORY"/{golden}
echo updated {golden}
"""

def _golden_update_impl(ctx):
    golden = ctx.file.golden
    if not golden.is_source or golden.short_path.startswith("../"):
        fail("%s: the golden file %s must be checked in, in this workspace" %
             (label_text(ctx.label), label_text(ctx.attr.golden.label)))
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    ctx.actions.write(
        output = script,
        # `bazel run` starts it where short paths begin.
        content = _SCRIPT.format(
            advice = shell.quote("start this with: bazel run " + command_word(label_text(ctx.label))),
            golden = shell.quote(golden.short_path),
            source = shell.quote(ctx.file.file.short_path),
        ),
        is_executable = True,
    )
    return [DefaultInfo(executable = script, runfiles = ctx.runfiles([ctx.file.file]))]

_golden_update = rule(
    implementation = _golden_update_impl,
    doc = "Writes a generated file over the one that is checked in.",
    attrs = {
        "file": attr.label(mandatory = True, allow_single_file = True),
        "golden": attr.label(mandatory = True, allow_single_file = True),
    },
    executable = True,
)

def _generated_impl(ctx):
    link = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.symlink(output = link, target_file = ctx.file.file)
    return [DefaultInfo(files = depset([link]))]

_generated = rule(
    implementation = _generated_impl,
    doc = "A file under a name that no golden file has: of two files at one place, runfiles hold one.",
    attrs = {"file": attr.label(mandatory = True, allow_single_file = True)},
)

def golden_test(*, name, file, golden, subject, update = None, **kwargs):
    """Fails if `file` is not what `golden` is, with the command that makes it so.

    Args:
      name: of the test.
      file: label of the generated file.
      golden: label of the file that is checked in.
      subject: what the files say, such as "What //models:ranker takes or gives".
      update: name of the executable target that updates the golden file; `NAME.update` unless given.
      **kwargs: what every rule takes (tags, visibility, ...).
    """
    update = update or name + ".update"
    golden_label = attribute_label(golden)
    common = {"testonly": True} | common_attributes(kwargs)
    _generated(
        name = name + ".generated",
        file = file,
        **common
    )
    _golden_update(
        name = update,
        file = ":" + name + ".generated",
        golden = golden,
        **common
    )
    kwargs.setdefault("size", "small")
    diff_test(
        name = name,
        failure_message = "%s is no longer what %s says.\nIf that is meant: bazel run %s" % (
            subject,
            golden_label.name if golden_label else "the golden file",
            command_word(label_text(native.package_relative_label(update))),
        ),
        file1 = golden,
        file2 = ":" + name + ".generated",
        **kwargs
    )
