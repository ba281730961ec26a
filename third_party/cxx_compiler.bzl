"""The C++ compiler that compiles programs to native code: the machine's own, found once and declared.

    cxx_compiler(name = "cxx_compiler")

A machine without one builds everything but targets with `compile`, and these say what is missing.
"""

_BUILD = """\
load("{rules}", "cxx_compiler_info")

package(default_visibility = ["//visibility:public"])

cxx_compiler_info(
    name = "compiler",
    files = glob(["files/*"], allow_empty = True) + ["version.txt"],
    path = {path},
    problem = {problem},
)
"""

# What makes no code, but decides what code is made: another one changes the key of actions.
_PROGRAMS = ["cc1plus", "as", "ld"]

def _find(rctx):
    """Returns (path, None), or (None, what is wrong)."""
    chosen = rctx.os.environ.get("SLIPWAY_CXX")
    candidate = chosen or "g++"
    path = rctx.path(candidate) if candidate.startswith("/") else rctx.which(candidate)
    if path == None or not path.exists:
        return None, "there is no C++ compiler %s; install it (Debian 12: apt-get install g++), or name one: export SLIPWAY_CXX=/path/to/g++" % candidate
    result = rctx.execute([path, "-v"])
    if result.return_code or "gcc version" not in result.stderr:
        return None, "%s is not a GNU C++ compiler that starts" % path
    return path, None

def _cxx_compiler_impl(rctx):
    path, problem = _find(rctx)
    version = "none\n"
    if path:
        version = rctx.execute([path, "-v"]).stderr
        version += rctx.execute(["getconf", "GNU_LIBC_VERSION"]).stdout
        rctx.symlink(path, "files/g++")
        for program in _PROGRAMS:
            found = rctx.execute([path, "-print-prog-name=" + program]).stdout.strip()
            found = rctx.path(found) if found.startswith("/") else rctx.which(found)
            if found and found.exists:
                rctx.symlink(found, "files/" + program)
    rctx.file("version.txt", version, executable = False)

    # Code is tried where it is compiled.
    processor = rctx.execute(["grep", "-q", "-w", "avx2", "/proc/cpuinfo"]).return_code == 0
    rctx.file(
        "compiler.bzl",
        "# Whether targets with `compile` can be built here.\nCAN_COMPILE = %r\n" % bool(path and processor),
        executable = False,
    )
    rctx.file(
        "BUILD.bazel",
        _BUILD.format(rules = Label(":cxx_compiler_info.bzl"), path = repr(str(path) if path else ""), problem = repr(problem or "")),
        executable = False,
    )

cxx_compiler = repository_rule(
    implementation = _cxx_compiler_impl,
    doc = """Declares the machine's GNU C++ compiler, if it has one.

    Targets: `:compiler`, a CxxCompilerInfo. `compiler.bzl` has CAN_COMPILE: whether there is a
    compiler, and a processor with AVX2. The compiler is `$SLIPWAY_CXX` where that is set, else
    `g++` on the PATH. A later change of the PATH alone does not look again; `bazel sync
    --configure` does.""",
    configure = True,
    environ = ["SLIPWAY_CXX"],
)
