"""The Python that runs everything: the machine's own 3.11, found once and declared.

    python_interpreter(name = "python_interpreter")
    register_toolchains("@python_interpreter//:toolchain")

The repository is a virtual environment without packages. A binary therefore sees the
standard library and what it depends on, never what somebody installed on the machine;
and since the interpreter and `pyvenv.cfg` are files of the repository, another build or
version of Python changes the key of every action that uses it.
"""

_VERSION = "3.11"

# Prints the version and the real executable: shims (pyenv) and virtual environments
# are scripts and links that would not work from inside a sandbox.
_PROBE = """
import os, platform, sys
executable = getattr(sys, "_base_executable", None) or sys.executable
print(platform.python_version())
print(platform.python_implementation())
print(os.path.realpath(executable))
"""

_BUILD = """\
load("@rules_python//python:py_runtime.bzl", "py_runtime")
load("@rules_python//python:py_runtime_pair.bzl", "py_runtime_pair")

package(default_visibility = ["//visibility:public"])

exports_files([
    "bin/python3",
    "pyvenv.cfg",
    "version.txt",
])

py_runtime(
    name = "runtime",
    files = [
        "pyvenv.cfg",
        "version.txt",
    ],
    interpreter = "bin/python3",
    python_version = "PY3",
    # Starts the script that prepares the import path. Isolated, and not by way of
    # `env python3`, which a machine may lack or may resolve to another version.
    stub_shebang = "#!{executable} -I",
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

def _candidates(rctx):
    """Names or paths to try, in order: only the user's choice where there is one."""
    chosen = rctx.os.environ.get("SLIPWAY_PYTHON")
    return [chosen] if chosen else ["python" + _VERSION, "python3"]

def _probe(rctx, candidate):
    """Returns (version, executable, None), or (None, None, what is wrong)."""
    path = rctx.path(candidate) if candidate.startswith("/") else rctx.which(candidate)
    if path == None or not path.exists:
        return None, None, "not found"
    result = rctx.execute([path, "-I", "-c", _PROBE])
    if result.return_code != 0:
        lines = (result.stderr.strip() or "exit status %d" % result.return_code).splitlines()
        return None, None, "does not start: " + lines[0]
    answer = result.stdout.strip().split("\n")
    if len(answer) != 3:
        return None, None, "is no Python: it printed '%s'" % result.stdout
    version, implementation, executable = answer
    if implementation != "CPython" or not version.startswith(_VERSION + "."):
        return None, None, "is %s %s (%s)" % (implementation, version, executable)
    return version, executable, None

def _python_interpreter_impl(rctx):
    version, executable, problems = None, None, []
    for candidate in _candidates(rctx):
        version, executable, problem = _probe(rctx, candidate)
        if not problem:
            break
        problems.append("  %s %s" % (candidate, problem))
    if not executable:
        fail("\n".join(
            ["Slipway needs CPython %s. Tried:" % _VERSION] + problems + [
                "Install it (Debian 12: apt-get install python3), or name one: " +
                "export SLIPWAY_PYTHON=/path/to/python" + _VERSION,
            ],
        ))

    rctx.symlink(executable, "bin/python3")
    rctx.file("pyvenv.cfg", "\n".join([
        "home = " + str(rctx.path(executable).dirname),
        "include-system-site-packages = false",
        "version = " + version,
        "",
    ]), executable = False)
    rctx.file("version.txt", version + "\n", executable = False)
    rctx.file("BUILD.bazel", _BUILD.replace("{executable}", executable), executable = False)

python_interpreter = repository_rule(
    implementation = _python_interpreter_impl,
    doc = """Declares the machine's CPython 3.11 as the Python toolchain.

    Targets: `:toolchain` to register, `:bin/python3` for repository rules, `:version.txt`
    holds the full version. The interpreter is `$SLIPWAY_PYTHON` where that is set, else
    the first 3.11 of `python3.11` and `python3` on the PATH. A later change of the PATH
    alone does not look again; `bazel sync --configure` does.""",
    configure = True,
    environ = ["SLIPWAY_PYTHON"],
)
