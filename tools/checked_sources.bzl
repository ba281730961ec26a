"""checked_sources: the files below a package that the checks in //tools read."""

def checked_sources():
    """Declares the filegroups `python_sources` and `starlark_sources`.

    They hold the files of this package and of all packages below it. Every BUILD file of
    the repository calls this once; one that does not breaks //tools:lint_test with "no
    such target", so that no file escapes the checks.
    """
    prefix = native.package_name() + "/" if native.package_name() else ""

    # In the root not deeper than one level, and without Bazel's own links (bazel-out, ...),
    # which lead to other trees: each folder there is a package or holds nothing to check.
    beneath = native.subpackages(
        include = ["**"] if prefix else ["*"],
        exclude = [] if prefix else ["bazel-*"],
        allow_empty = True,
    )
    depth = "**/" if prefix else ""
    native.filegroup(
        name = "python_sources",
        # Without what pip generates in a checkout.
        srcs = native.glob([depth + "*.py"], exclude = ["**/*_pb2.py"], allow_empty = True) +
               ["//%s%s:python_sources" % (prefix, package) for package in beneath],
        visibility = ["//visibility:public"],
    )
    native.filegroup(
        name = "starlark_sources",
        srcs = native.glob(
                   [depth + name for name in ["BUILD", "MODULE.bazel", "WORKSPACE", "*.bzl"]],
                   allow_empty = True,
               ) +
               ["//%s%s:starlark_sources" % (prefix, package) for package in beneath],
        visibility = ["//visibility:public"],
    )
