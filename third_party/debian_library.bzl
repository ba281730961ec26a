"""A shared library out of a Debian package, for a binary that is not ours and needs it.

    debian_library(name = "debian_libb64", package = "libb64-0d")

makes `@debian_libb64//:libraries`, the files `lib/*.so*` of the package in the version of the
machine's own Debian or Ubuntu. Nothing is installed, and no root is needed. apt verifies what it
fetches. On a machine without apt the target is empty.
"""

_BUILD = """\
filegroup(
    name = "libraries",
    srcs = glob(["lib/*"], allow_empty = True),
    visibility = ["//visibility:public"],
)
"""

# The machine's own sources, and private state for the rest: its package lists may be empty or old,
# and are not ours to refresh.
_FETCH = """\
set -eu
mkdir -p state/lists/partial state/cache/archives/partial package lib
: >state/status
options="-q -o Dir::State::Lists=$PWD/state/lists -o Dir::State::status=$PWD/state/status
  -o Dir::Cache=$PWD/state/cache -o Debug::NoLocking=true -o APT::Sandbox::User=$(id -un)
  -o Acquire::Languages=none -o Acquire::Retries=3"
apt-get $options update
apt-get $options download "$1"
dpkg-deb --extract "$1"_*.deb package
find package -name '*.so*' -exec cp -P {} lib/ ';'
rm -r state package "$1"_*.deb
"""

def _debian_library_impl(rctx):
    rctx.file("BUILD.bazel", _BUILD, executable = False)
    if not rctx.which("apt-get") or not rctx.which("dpkg-deb"):
        return
    rctx.report_progress("fetching Debian's %s" % rctx.attr.package)
    result = rctx.execute(["/bin/sh", "-c", _FETCH, "fetch", rctx.attr.package], timeout = 600)
    if result.return_code != 0:
        fail("debian_library %s: apt cannot fetch %s: check the network and /etc/apt: %s" % (
            rctx.name,
            rctx.attr.package,
            result.stderr.strip() or result.stdout.strip(),
        ))

debian_library = repository_rule(
    implementation = _debian_library_impl,
    attrs = {"package": attr.string(mandatory = True, doc = "The name of the Debian package.")},
)
