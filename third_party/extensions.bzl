"""Module extensions, for MODULE.bazel files."""

load(":repositories.bzl", "python_repositories")

def _python_impl(_module_ctx):
    python_repositories()

python = module_extension(
    implementation = _python_impl,
    doc = "Declares @cxx_compiler, @python_interpreter, @python_site and the sites of Slipway's own tests.",
)
