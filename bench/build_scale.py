"""What many export targets cost a build that has nothing to export.

    bazel run //bench:build_scale

Generates packages with 10, 100 and 1,000 torch_export targets of one model in a copy of the
workspace. Their exporter has all the inputs of the real one, //bench:empty_exporter, but writes an
empty program at once: analysis and null builds, which are measured, do not run it. Prints one JSON
object: median seconds of analysis (after a change of a build option, which makes Bazel analyse
everything anew) and of a build with nothing to do, and for both what each further target adds, in
milliseconds, from 10 to 100 targets and from 100 to 1,000.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from slipway.bench.measure import elapsed, interleave, print_figures
from slipway.tests.nested_bazel.nested_bazel import Bazel, copy_checkout, scratch_folder

_SIZES = (10, 100, 1000)
_TARGETS_IN_PACKAGE = 100
_BUILD = """\
load("//export:defs.bzl", "torch_export")

[
    torch_export(
        name = "program_%d" % number,
        entry_point = "examples.mlp.model:export_spec",
        exporter = "//bench:empty_exporter",
        model = "//examples/mlp:model",
    )
    for number in range({targets})
]
"""


def _generate(checkout: Path) -> None:
    for size in _SIZES:
        for number, start in enumerate(range(0, size, _TARGETS_IN_PACKAGE)):
            package = checkout / f"scale/n{size}/p{number}"
            package.mkdir(parents=True)
            targets = min(_TARGETS_IN_PACKAGE, size - start)
            (package / "BUILD").write_text(_BUILD.format(targets=targets), encoding="utf-8")


def _measure(bazel: Bazel) -> dict[str, float]:
    define = itertools.count()
    # Not in a worker, which the empty exporter is not; and nothing to guard against.
    flags = ("--strategy=TorchExport=local",)

    def build(size: int, *further: str) -> float:
        pattern = f"//scale/n{size}/..."
        return elapsed(lambda: bazel.run("build", *flags, *further, pattern))

    def analysis(size: int) -> float:
        return build(size, "--nobuild", f"--define=ROUND={next(define)}")

    figures = interleave(
        {f"analysis_{size}_s": lambda size=size: analysis(size) for size in _SIZES},  # type: ignore[misc]
        rounds=5,
    )
    for size in _SIZES:
        print(f"{size} targets built in {build(size):.1f} s", flush=True)
    return figures | interleave(
        {f"null_build_{size}_s": lambda size=size: build(size) for size in _SIZES},  # type: ignore[misc]
        rounds=5,
    )


def main() -> None:
    with scratch_folder() as scratch:
        checkout = copy_checkout(scratch / "checkout")
        _generate(checkout)
        with Bazel(checkout, scratch / "output_base") as bazel:
            figures = _measure(bazel)
    for kind in ("analysis", "null_build"):
        for small, large in itertools.pairwise(_SIZES):
            added = figures[f"{kind}_{large}_s"] - figures[f"{kind}_{small}_s"]
            figures[f"{kind}_ms_per_target_{small}_to_{large}"] = 1e3 * added / (large - small)
    print_figures(figures)


if __name__ == "__main__":
    main()
