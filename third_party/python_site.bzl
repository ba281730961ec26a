"""Third-party Python as one precompiled directory instead of thousands of files.

A repository per package puts 16,000 files of torch into every sandbox as links, without
bytecode. `python_site` lets pip install a whole lock into a single `site-packages/`,
compiles it, and exposes it as one source directory: an action that imports torch starts
several times faster, packages that find each other's libraries by relative path do so, and
targets use it as any other `py_library`:

    deps = ["@python_site//:pkg"]

With `startup --host_jvm_args=-DBAZEL_TRACK_SOURCE_DIRECTORIES=1` (see .bazelrc) Bazel also
notices an edit inside the directory.
"""

_BUILD = """\
load("@rules_python//python:py_library.bzl", "py_library")

package(default_visibility = ["//visibility:public"])

exports_files([
    "BUILD.bazel",
    "site-packages",
])

py_library(
    name = "pkg",
    data = ["site-packages"],
    imports = ["site-packages"],
)
"""

def _python_site_impl(rctx):
    # The files must be resolved before anything runs: each may restart this function.
    locks = [rctx.path(lock) for lock in [rctx.attr.lock] + rctx.attr.without]
    script = rctx.path(rctx.attr._install)

    # Not the link to it, which is a virtual environment without pip.
    interpreter = rctx.path(rctx.attr.interpreter).realpath

    rctx.report_progress("installing packages and compiling them")
    result = rctx.execute(
        [interpreter, script, "site-packages"] + locks,
        # The order of sets must not reach the bytecode.
        environment = {"PYTHONHASHSEED": "0"},
        timeout = 3600,
    )
    if result.return_code != 0:
        fail("python_site %s: %s" % (rctx.name, result.stderr.strip() or result.stdout.strip()))
    rctx.file("BUILD.bazel", _BUILD, executable = False)

python_site = repository_rule(
    implementation = _python_site_impl,
    doc = """Declares a repository whose `:pkg` is a py_library of a lock file's packages.

    pip installs them as this machine configures it: its index, its certificates, and where the
    CPU build of torch is found. It accepts wheels with the lock's hashes only.""",
    attrs = {
        "interpreter": attr.label(
            mandatory = True,
            doc = "The Python that will import the packages. It, or what the link leads to, installs and compiles them.",
        ),
        "lock": attr.label(
            mandatory = True,
            doc = "The lock, as pip-compile --generate-hashes writes it.",
        ),
        "without": attr.label_list(
            doc = "Other locks, whose packages are left out of this site because a target has them already.",
        ),
        "_install": attr.label(default = Label("//third_party:install_site.py")),
    },
)
