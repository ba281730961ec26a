"""Builds examples and compiled programs again and again, each time otherwise; compares all files.

    bazel run //tests/reproducibility:report

Two checkouts at different paths, each with an output base of its own; exports in workers and in
sandboxes; another user, other environments, hash seeds and numbers of threads. Controls, which no
two builds make alike, show that the comparison can fail. Ends with status 0 when every artifact is
identical in every build and every control differs.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from slipway.tests.nested_bazel.nested_bazel import Bazel, copy_checkout, scratch_folder
from slipway.tests.reproducibility.comparison import differences

# Programs, contract texts and model repositories, by their rules.
_RULES = "torch_export|torch_program_from_pt2|torch_contract|torch_model_repository"
_ARTIFACTS = f"kind('({_RULES}) rule', //examples/... + //tests/reproducibility/...)"
# Programs with native code beside their graphs, and the attribute that says what can make it.
_COMPILED = "attr(compile, aot_inductor, //bench/... + //tests/compiled/...)"
_COMPILER = "attr(path, '.', @cxx_compiler//:compiler)"
_CONTROLS = "attr(tags, reproducibility_control, //tests/reproducibility/...)"

# A build setting: variables over those with which exports and compilations otherwise run.
_VARIABLE = "--//export/private:environment"

# Vector units above those that the export action pins, for the libraries that choose them.
_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}

# Of another user of another machine, as far as an environment can say. The pins of the export
# action must hold against it.
_SOMEONE_ELSE = _AVX2 | {
    "LANG": "C.UTF-8",
    "LOGNAME": "someone",
    "OMP_NUM_THREADS": "2",
    "PYTHONHASHSEED": "7",
    "TZ": "Pacific/Auckland",
    "USER": "someone",
}
_HERMETIC = ("--config=hermetic", "--sandbox_fake_username")


class Comparison:
    """What has been built, against the first build."""

    def __init__(self, expected: Mapping[str, Path], controls: Mapping[str, Path]) -> None:
        self.expected = expected
        self.controls = controls
        self.unequal: set[str] = set()

    def compare(self, description: str, actual: Mapping[str, Path], seconds: float) -> None:
        found = differences(self.expected, actual)
        self.unequal |= found.keys()
        print(f"{description}: {len(found)} of {len(actual)} files differ ({seconds:.0f} s)")
        for name, what in found.items():
            print(f"  {name} {what}")
        sys.stdout.flush()

    def is_captured_alike_with_avx2(self, bazel: Bazel) -> bool:
        """Whether contracts, graphs and code stay the same where vector units are not pinned.

        Random weights and the outputs of cases then differ: that is what the pins are for. Native
        code holds no weights.
        """
        flag = f"{_VARIABLE}={','.join(f'{name}={value}' for name, value in _AVX2.items())}"
        found = differences(self.expected, _build(bazel, flag)[0])
        print(f"first checkout, pins lifted for AVX2: {len(found)} files differ:")
        print("  " + "\n  ".join(found))
        # A contract's text has the digests of the contract and of the graph, and no others.
        changed = [name for name in found if name.endswith(("_contract.txt", ".so"))]
        print(f"  contracts, graphs or native code among them: {len(changed)}", flush=True)
        return not changed

    def unlike_controls(self, actual: Mapping[str, Path]) -> bool:
        """Whether every control differs; prints those that do not."""
        alike = sorted(self.controls.keys() - differences(self.controls, actual).keys())
        for name in alike:
            print(f"the control {name} is the same in both builds: the comparison sees nothing")
        return bool(self.controls) and not alike


def _targets(bazel: Bazel, query: str) -> list[str]:
    return bazel.run("query", query).split()


def _compiles(bazel: Bazel) -> bool:
    """Whether programs with native code can be built: @cxx_compiler asks for the same."""
    return _has_avx2() and bool(_targets(bazel, _COMPILER))


def _build(bazel: Bazel, *flags: str) -> tuple[dict[str, Path], float]:
    """Returns the artifacts, by their path in the output tree, and how long they took."""
    compiles = _compiles(bazel)
    targets = _targets(bazel, f"{_ARTIFACTS} + {_COMPILED}" if compiles else _ARTIFACTS)
    start = time.monotonic()
    bazel.run("build", *flags, *targets)
    seconds = time.monotonic() - start
    files = bazel.outputs(targets, *flags)
    endings = [".program/program.pb", "/1/program.pb", "_contract.txt"]
    for ending in endings + (["/compiled.pb", "/method-0.so"] if compiles else []):
        if not any(name.endswith(ending) for name in files):
            raise SystemExit(f"nothing that was built is called *{ending}: see the queries above")
    return files, seconds


def _controls(bazel: Bazel) -> dict[str, Path]:
    targets = _targets(bazel, _CONTROLS)
    bazel.run("build", *targets)
    return bazel.outputs(targets)


def _keep(files: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Copies files, which the next build will replace."""
    kept = {}
    for name, file in files.items():
        kept[name] = folder / name
        kept[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept[name])
    return kept


def _has_avx2() -> bool:
    return "avx2" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split()


def _compare_builds(scratch: Path) -> bool:
    first = copy_checkout(scratch / "first" / "checkout")
    second = copy_checkout(scratch / "second" / "much" / "deeper" / "another_name")
    home = scratch / "second" / "home"
    home.mkdir()

    with Bazel(first, scratch / "first" / "output_base") as bazel:
        if not _compiles(bazel):
            print("compiled programs are left out: they need a C++ compiler (g++) and AVX2")
        files, seconds = _build(bazel)
        comparison = Comparison(
            _keep(files, scratch / "kept"), _keep(_controls(bazel), scratch / "kept")
        )
        print(f"first checkout, workers: {len(files)} files ({seconds:.0f} s)", flush=True)
        for description, flags in {
            "hash seed 1, sandboxes": (f"{_VARIABLE}=PYTHONHASHSEED=1", *_HERMETIC),
            "random hash seed, workers": (f"{_VARIABLE}=PYTHONHASHSEED=random",),
            "two threads, workers": (f"{_VARIABLE}=OMP_NUM_THREADS=2",),
        }.items():
            comparison.compare(f"first checkout, {description}", *_build(bazel, *flags))
        captured = not _has_avx2() or comparison.is_captured_alike_with_avx2(bazel)

    someone_else = _SOMEONE_ELSE | {"HOME": str(home)}
    with Bazel(second, scratch / "second" / "output_base", someone_else) as bazel:
        inherited = [f"--action_env={name}" for name in _SOMEONE_ELSE]
        comparison.compare(
            "second checkout, another user and environment, sandboxes",
            *_build(bazel, *inherited, *_HERMETIC),
        )
        differ = comparison.unlike_controls(_controls(bazel))
        comparison.compare(
            "second checkout, hash seed 2, workers",
            *_build(bazel, *inherited, f"{_VARIABLE}=PYTHONHASHSEED=2"),
        )

    number = len(comparison.expected)
    identical = len(comparison.expected.keys() - comparison.unequal)
    print(
        f"reproducibility: {number} artifacts, {identical} identical, "
        f"controls differ: {'yes' if differ else 'no'}"
    )
    return bool(number) and captured and not comparison.unequal and differ


def main() -> int:
    with scratch_folder() as scratch:
        return 0 if _compare_builds(scratch) else 1


if __name__ == "__main__":
    sys.exit(main())
