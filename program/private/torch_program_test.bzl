"""torch_program_test: a program does what it promises on the machine that runs the test."""

load(":common_attributes.bzl", "common_attributes")
load(":generated_main.bzl", "self_check_main")

def torch_program_test(*, name, program, custom_ops = [], **kwargs):
    """Loads a program, verifies its digests, runs its cases and calls it at its contract's corners.

    The calls at the corners have random tensors, and integers that are zero. They must succeed, and
    give the dtypes and shapes that the contract promises; a call that one of the model's own
    assertions on values refuses counts as well. Values are compared in the program's cases only.

    Example:

        torch_program_test(
            name = "ranker_test",
            program = ":ranker",
        )

    Args:
      name: of the test.
      program: a program, such as a torch_export target.
      custom_ops: py_library targets that register operators, beside those that the program was
        exported with, which are imported anyway.
      **kwargs: as for `py_test`. The size is medium unless given.
    """
    main = name + "_main.py"
    common = common_attributes(kwargs)
    self_check_main(
        name = name + ".main",
        testonly = True,
        custom_ops = custom_ops,
        main = main,
        program = program,
        **common
    )
    kwargs.setdefault("size", "medium")
    native.py_test(
        name = name,
        srcs = [main],
        main = main,
        deps = kwargs.pop("deps", []) + [":%s.main" % name, Label("//program")],
        **kwargs
    )
