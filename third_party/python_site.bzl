"""Third-party Python as one precompiled directory instead of thousands of files.

`pip_parse` makes a repository per package. Depending on those puts 16,000 files of torch
into every sandbox as links, without bytecode. `python_site` merges them once into a
single `site-packages/`, compiles it, and exposes it as one source directory: an action
that imports torch starts several times faster, packages that find each other's libraries
by relative path do so, and targets use it as any other `py_library`:

    deps = ["@python_site//:pkg"]

Needs `startup --host_jvm_args=-DBAZEL_TRACK_SOURCE_DIRECTORIES=1` (see .bazelrc).
"""

_BUILD = """\
load("@rules_python//python:py_library.bzl", "py_library")

package(default_visibility = ["//visibility:public"])

exports_files(["site-packages"])

py_library(
    name = "pkg",
    data = ["site-packages"],
    imports = ["site-packages"],
)
"""

def _package_names(requirements, pip_repository):
    """{"numpy": "@pip_numpy"} from ["@pip_numpy//:pkg"]."""
    prefix = "@" + pip_repository + "_"
    names = {}
    for requirement in requirements:
        repository = requirement.split("//")[0]
        if not repository.startswith(prefix):
            fail("python_site: %s is not a package of pip_parse(name = \"%s\")" % (requirement, pip_repository))
        names[repository[len(prefix):]] = repository
    return names

def _python_site_impl(rctx):
    # The files must be resolved before anything runs: each may restart this function.
    roots = [rctx.path(package).dirname for package in rctx.attr.packages]
    interpreter = rctx.path(rctx.attr.interpreter)
    script = rctx.path(rctx.attr._merge)

    rctx.report_progress("merging %d packages and compiling them" % len(roots))
    result = rctx.execute(
        [interpreter, "-I", script, "site-packages"] + roots,
        # The order of sets must not reach the bytecode.
        environment = {"PYTHONHASHSEED": "0"},
        timeout = 1800,
    )
    if result.return_code != 0:
        fail("python_site %s: %s" % (rctx.name, result.stderr.strip() or result.stdout.strip()))
    rctx.file("BUILD.bazel", _BUILD, executable = False)

_python_site = repository_rule(
    implementation = _python_site_impl,
    attrs = {
        "interpreter": attr.label(mandatory = True),
        # Read by nothing: a change of the lock rebuilds the site.
        "lock": attr.label(mandatory = True),
        "packages": attr.label_list(mandatory = True),
        "_merge": attr.label(default = Label("//third_party:merge_site.py")),
    },
)

def python_site(*, name, packages, pip_repository, interpreter, lock, without_packages = [], without_pip_repository = ""):
    """Declares the repository `@name`, whose `:pkg` is a py_library of all packages.

    Args:
      name: of the repository.
      packages: `all_requirements` of a `pip_parse`.
      pip_repository: the name of that `pip_parse`.
      interpreter: label of the Python that will import the packages; it compiles them.
      lock: label of the lock file that the `pip_parse` reads.
      without_packages: `all_requirements` of another `pip_parse`, whose packages are left
        out of this site because a target has them already.
      without_pip_repository: the name of that other `pip_parse`.
    """
    left_out = _package_names(without_packages, without_pip_repository)
    kept = _package_names(packages, pip_repository)
    _python_site(
        name = name,
        interpreter = interpreter,
        lock = lock,
        packages = [
            kept[package] + "//:BUILD.bazel"
            for package in sorted(kept)
            if package not in left_out
        ],
    )
