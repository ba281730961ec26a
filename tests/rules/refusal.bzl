"""A test that a target is refused, in certain words."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")

def _refusal_test_impl(ctx):
    env = analysistest.begin(ctx)
    asserts.expect_failure(env, ctx.attr.expected)
    return analysistest.end(env)

refusal_test = analysistest.make(
    _refusal_test_impl,
    attrs = {"expected": attr.string(mandatory = True)},
    expect_failure = True,
)
