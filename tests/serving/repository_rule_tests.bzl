"""Whether torch_model_repository refuses, in words, what a server could not serve."""

load("//serving:defs.bzl", "torch_model_repository")

# What is said of each misplaced program.
_CASES = {
    "duplicate": (
        {"//examples/encoder": "m/1", "//examples/mlp": "m/1"},
        "are both placed at \"m/1\": give one of them another version",
    ),
    "empty": ({}, "programs is empty"),
    "long_name": ({"//examples/mlp": "m" * 129 + "/1"}, "at most 128 of them"),
    "long_version": ({"//examples/mlp": "mlp/" + "1" * 19}, "the version must be an integer from 1"),
    "name": ({"//examples/mlp": "my model/1"}, "the model's name must be letters"),
    "no_version": ({"//examples/mlp": "mlp"}, "expected MODEL/VERSION, such as \"mlp/1\""),
    "traversal": ({"//examples/mlp": "../1"}, "the model's name must be letters"),
    "version_leading_zero": ({"//examples/mlp": "mlp/01"}, "the version must be an integer from 1"),
    "version_nested": ({"//examples/mlp": "mlp/1/2"}, "the version must be an integer from 1"),
    "version_word": ({"//examples/mlp": "mlp/latest"}, "not \"latest\""),
    "version_zero": ({"//examples/mlp": "mlp/0"}, "the version must be an integer from 1"),
}

_allow_failures = analysis_test_transition(
    settings = {"//command_line_option:allow_analysis_failures": "True"},
)

def _refusal_test_impl(ctx):
    target = ctx.attr.target[0] if type(ctx.attr.target) == type([]) else ctx.attr.target
    if AnalysisFailureInfo not in target:
        return AnalysisTestResultInfo(success = False, message = "it was not refused")
    messages = [cause.message for cause in target[AnalysisFailureInfo].causes.to_list()]
    found = [message for message in messages if ctx.attr.expected in message]
    return AnalysisTestResultInfo(
        success = bool(found),
        message = "expected %r in %r" % (ctx.attr.expected, messages),
    )

_refusal_test = rule(
    implementation = _refusal_test_impl,
    attrs = {
        "expected": attr.string(mandatory = True),
        "target": attr.label(cfg = _allow_failures, mandatory = True),
    },
    analysis_test = True,
)

def repository_rule_test_suite(*, name):
    """A test for each misplaced program.

    Args:
      name: of the test suite.
    """
    for case, (programs, expected) in _CASES.items():
        torch_model_repository(
            name = "_%s_%s" % (name, case),
            programs = programs,
            # They cannot be built.
            tags = ["manual"],
        )
        _refusal_test(
            name = "%s_%s" % (name, case),
            expected = expected,
            target = "_%s_%s" % (name, case),
        )
    native.test_suite(
        name = name,
        tests = ["%s_%s" % (name, case) for case in _CASES],
    )
