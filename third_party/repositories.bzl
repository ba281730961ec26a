"""The repositories of Slipway's Python and C++, for WORKSPACE files and for modules alike."""

load(":cxx_compiler.bzl", "cxx_compiler")
load(":python_site.bzl", "python_site")
load(":python_toolchain.bzl", "python_interpreter")

def python_repositories(*, interpreter = None, declared = []):
    """Declares the interpreter, the sites, and the C++ compiler, if the machine has one.

    Args:
      interpreter: label of another CPython 3.11, for which the sites are then made.
      declared: names of repositories that exist already.
    """
    interpreter = interpreter or "@python_interpreter//:bin/python3"
    if "python_interpreter" not in declared:
        python_interpreter(name = "python_interpreter")
    if "cxx_compiler" not in declared:
        cxx_compiler(name = "cxx_compiler")
    run_time_lock = Label("//third_party:requirements.txt")
    if "python_site" not in declared:
        python_site(
            name = "python_site",
            interpreter = interpreter,
            lock = run_time_lock,
        )

    # What --config=cuda has in its place.
    if "python_cuda_site" not in declared:
        python_site(
            name = "python_cuda_site",
            interpreter = interpreter,
            lock = Label("//third_party:cuda_requirements.txt"),
        )

    # What only Slipway's own tests and benchmarks use. A repository is made when a target needs it. Each
    # holds only what the run-time site lacks: a target that depends on both has no file twice.
    for name, lock in {
        "python_bench_site": Label("//third_party:bench_requirements.txt"),
        "python_model_site": Label("//third_party:model_requirements.txt"),
        "python_test_site": Label("//third_party:test_requirements.txt"),
    }.items():
        if name not in declared:
            python_site(
                name = name,
                interpreter = interpreter,
                lock = lock,
                without = [run_time_lock],
            )
