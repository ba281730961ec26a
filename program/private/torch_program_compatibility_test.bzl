"""torch_program_compatibility_test: a program still serves the clients of an earlier one."""

load(":common_attributes.bzl", "common_attributes")
load(":generated_main.bzl", "compatibility_main")

def torch_program_compatibility_test(*, name, program, baseline, python_callers = False, **kwargs):
    """Fails if a call that `baseline` allows is refused by `program`, or has other results.

    The log says clause by clause what has changed: widened, narrowed or incompatible.

    Example:

        torch_program_compatibility_test(
            name = "ranker_compatibility_test",
            baseline = "ranker.contract.json",
            program = ":ranker",
        )

    Args:
      name: of the test.
      program: a program, such as a torch_export target.
      baseline: what existing clients were written for. A file that is checked in, made by
        `bazel run @slipway//program:cli -- baseline PROGRAM > ranker.contract.json`; or a program,
        as a target or as a directory.
      python_callers: whether some clients call the program as a Python object. Then how arguments
        and results are nested counts too, and arguments that are no tensors.
      **kwargs: as for `py_test`. The size is small unless given.
    """
    main = name + "_main.py"
    common = common_attributes(kwargs)
    compatibility_main(
        name = name + ".main",
        testonly = True,
        baseline = baseline,
        main = main,
        program = program,
        python_callers = python_callers,
        **common
    )
    kwargs.setdefault("size", "small")
    native.py_test(
        name = name,
        srcs = [main],
        main = main,
        deps = kwargs.pop("deps", []) + [":%s.main" % name, Label("//program")],
        **kwargs
    )
