"""What export targets are, as a BUILD file or a macro declares them."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")
load("//export:defs.bzl", "torch_export")

def _gives_weights_test_impl(ctx):
    env = analysistest.begin(ctx)
    actions = [action for action in analysistest.target_actions(env) if action.mnemonic == "TorchExport"]
    asserts.equals(env, 1, len(actions))
    inputs = {file.basename: file.path for file in actions[0].inputs.to_list()}
    for name in ctx.attr.files:
        asserts.true(env, name in inputs, "%s is no input" % name)
    return analysistest.end(env)

_gives_weights_test = analysistest.make(
    _gives_weights_test_impl,
    attrs = {"files": attr.string_list(mandatory = True)},
)

_gives_weights_in_optimized_builds_test = analysistest.make(
    _gives_weights_test_impl,
    attrs = {"files": attr.string_list(mandatory = True)},
    config_settings = {"//command_line_option:compilation_mode": "opt"},
)

def _refusal_test_impl(ctx):
    env = analysistest.begin(ctx)
    asserts.expect_failure(env, ctx.attr.expected)
    return analysistest.end(env)

_refusal_test = analysistest.make(
    _refusal_test_impl,
    attrs = {"expected": attr.string(mandatory = True)},
    expect_failure = True,
)

def _test_macro_passes_on(name):
    """The macro's targets have what all rules take."""
    rule = native.existing_rule("scaler_torch")
    for attribute, expected in {
        "exec_compatible_with": ["@platforms//os:linux"],
        "tags": ["models"],
        "target_compatible_with": ["@platforms//os:linux"],
        "testonly": True,
        "visibility": ["//visibility:private"],
    }.items():
        found = rule[attribute]
        if type(found) == "tuple":
            found = [str(item).replace("@@", "@") for item in found]
        if found != expected:
            fail("%s of scaler_torch is %s, not %s" % (attribute, found, expected))
    return name

def export_targets_test_suite(*, name):
    """Tests at analysis of torch_export's inputs.

    Args:
      name: of the test suite.
    """
    _test_macro_passes_on(name)
    tests = []
    for target, files in {
        "configured": ["checked_in.json", "made.json"],
        "scaler_chosen": ["checked_in.json", "scaler.safetensors"],
        "scaler_shards_with_index": ["scaler-1.safetensors", "scaler-2.safetensors", "scaler.safetensors.index.json"],
        "scaler_torch": ["scaler.pt"],
    }.items():
        _gives_weights_test(
            name = "%s_%s" % (name, target),
            files = files,
            target_under_test = ":" + target,
        )
        tests.append("%s_%s" % (name, target))
    _gives_weights_in_optimized_builds_test(
        name = name + "_chosen_in_optimized_builds",
        files = ["scaler.pt"],
        target_under_test = ":scaler_chosen",
    )
    tests.append(name + "_chosen_in_optimized_builds")

    torch_export(
        name = "_weights_of_another_kind",
        entry_point = "tests.export_targets.models:scaler",
        model = ":models",
        tags = ["manual"],
        weights = "checked_in.json",
    )
    _refusal_test(
        name = name + "_weights_of_another_kind",
        expected = "expected .bin, .index.json, .pt, .pth or .safetensors",
        target_under_test = ":_weights_of_another_kind",
    )
    tests.append(name + "_weights_of_another_kind")
    native.test_suite(
        name = name,
        tests = tests,
    )
