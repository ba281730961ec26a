"""What a WORKSPACE file that depends on Slipway loads.

    load("@slipway//:deps.bzl", "slipway_dependencies")

    slipway_dependencies()

docs/adopting.md has the whole of it, and the same for MODULE.bazel.
"""

load("@bazel_tools//tools/build_defs/repo:http.bzl", "http_archive")
load("//third_party:repositories.bzl", "python_repositories")

def slipway_dependencies(*, interpreter = None):
    """Declares the repositories that Slipway needs, and registers its Python toolchain.

    A repository of the same name that the workspace has declared before stays as it is: its own
    `rules_python`, its own `bazel_skylib`, or a `python_site` with another torch.

    Args:
      interpreter: label of the executable of another CPython 3.11. Then no toolchain is
        registered: the workspace's own has to be of the same version.
    """

    # The two archives are what machines with GitHub fetch. On others ./bazelw replaces both
    # by Debian's packages of them.
    if not native.existing_rule("rules_python"):
        http_archive(
            name = "rules_python",
            sha256 = "a5640fddd4beb03e8c1fde5ed7160c0ba6bd477e7d048661c30c06936a26fd63",
            strip_prefix = "rules_python-0.22.1",
            url = "https://github.com/bazelbuild/rules_python/releases/download/0.22.1/rules_python-0.22.1.tar.gz",
        )
    if not native.existing_rule("bazel_skylib"):
        http_archive(
            name = "bazel_skylib",
            sha256 = "bc283cdfcd526a52c3201279cda4bc298652efa898b10b4db0837dc51652756f",
            url = "https://github.com/bazelbuild/bazel-skylib/releases/download/1.7.1/bazel-skylib-1.7.1.tar.gz",
        )

    # The machine's Python 3.11: for binaries, tests and repository rules alike.
    if interpreter == None:
        native.register_toolchains("@python_interpreter//:toolchain")
    python_repositories(
        declared = native.existing_rules().keys(),
        interpreter = interpreter,
    )
