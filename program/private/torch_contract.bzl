"""torch_contract: a program's contract as a text file, for reviews."""

load("//program:providers.bzl", "TorchProgramInfo")
load(":common_attributes.bzl", "common_attributes")
load(":description.bzl", "describe_program")
load(":golden_test.bzl", "golden_test")
load(":labels.bzl", "attribute_label", "label_text")

def _torch_contract_impl(ctx):
    text = ctx.actions.declare_file(ctx.label.name + ".txt")
    describe_program(
        ctx,
        tool = ctx.executable._cli,
        program = ctx.attr.program[TorchProgramInfo].program,
        output = text,
        mnemonic = "TorchContract",
        progress_message = "Describing %{label}",
        arguments = ["describe"] if ctx.attr.weights else ["describe", "--review"],
    )
    return [DefaultInfo(files = depset([text]), runfiles = ctx.runfiles([text]))]

_torch_contract = rule(
    implementation = _torch_contract_impl,
    doc = "The description of a program, as `describe` prints it, in NAME.txt.",
    attrs = {
        "program": attr.label(
            mandatory = True,
            providers = [TorchProgramInfo],
            doc = "A program, such as a torch_export target.",
        ),
        "weights": attr.bool(
            doc = "Also state what changes while contract and graph stay as they are.",
        ),
        "_cli": attr.label(
            default = Label("//program:cli"),
            cfg = "exec",
            executable = True,
        ),
    },
)

def _subject(program):
    label = attribute_label(program)
    return "What %s takes or gives" % (label_text(label) if label else "the program")

def torch_contract(*, name, program, golden = None, weights = False, **kwargs):
    """Writes what a program takes and gives to the text file NAME.txt.

    The text has the contract, the operators that the graph calls, and digests of both. It does
    not change when only the weights do, or where a line of the model stands. Check a copy in, name
    it `golden`, and every change of a shape or of the graph is part of a review.

    Example:

        torch_contract(
            name = "ranker_contract",
            golden = "ranker.contract.txt",
            program = ":ranker",
        )

    Args:
      name: of the target.
      program: a program, such as a torch_export target.
      golden: a checked-in file that must have the same text. The test NAME_test compares them;
        `bazel run :NAME_test.update` rewrites the file. Start with an empty one.
      weights: also state who wrote the program, the digests of the weights, the cases and the whole
        program, and the lines of the model that relations come from.
      **kwargs: what every rule takes (tags, visibility, ...).
    """
    _torch_contract(
        name = name,
        program = program,
        weights = weights,
        **kwargs
    )
    if golden == None:
        return
    golden_test(
        name = name + "_test",
        file = ":" + name,
        golden = golden,
        subject = _subject(program),
        **common_attributes(kwargs, "testonly")
    )

def torch_contract_test(*, name, program, golden, weights = False, **kwargs):
    """Fails if what a program takes or gives is no longer what a checked-in file says.

    The log shows the difference, and the command that updates the file: `bazel run :NAME.update`.
    It is the test of `torch_contract`, for those who want no other target.

    Example:

        torch_contract_test(
            name = "ranker_contract_test",
            golden = "ranker.contract.txt",
            program = ":ranker",
        )

    Args:
      name: of the test. `NAME.contract` is the torch_contract.
      program: a program, such as a torch_export target.
      golden: the checked-in file. Start with an empty one.
      weights: as for torch_contract: the test then also fails when only the weights change.
      **kwargs: what every test takes (size, tags, visibility, ...). The size is small unless given.
    """
    contract = name + ".contract"
    _torch_contract(
        name = contract,
        program = program,
        weights = weights,
        **({"testonly": True} | common_attributes(kwargs))
    )
    golden_test(
        name = name,
        file = ":" + contract,
        golden = golden,
        subject = _subject(program),
        **kwargs
    )
