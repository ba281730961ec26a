"""torch_contract: a program's contract as a text file, for reviews."""

load("@bazel_skylib//rules:diff_test.bzl", "diff_test")
load("//program:providers.bzl", "TorchProgramInfo")
load(":labels.bzl", "label_text")

def _torch_contract_impl(ctx):
    text = ctx.actions.declare_file(ctx.label.name + ".txt")
    program = ctx.attr.program[TorchProgramInfo].program
    arguments = ctx.actions.args()
    arguments.add("describe")
    if not ctx.attr.weights:
        arguments.add("--review")
    arguments.add("--output", text)

    # Not add(program): directories given to that are expanded to their files.
    arguments.add(program.path)
    ctx.actions.run(
        mnemonic = "TorchContract",
        progress_message = "Describing %{label}",
        executable = ctx.executable._cli,
        arguments = [arguments],
        inputs = [program],
        outputs = [text],
        env = {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONNOUSERSITE": "1",
        },
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

def torch_contract(*, name, program, golden = None, weights = False, **kwargs):
    """Writes what a program takes and gives to the text file NAME.txt.

    The text has the contract, the operators that the graph calls, and digests of both. It does
    not change when only the weights do, or where a line of the model stands. Check a copy in, name it `golden`, and every change of a
    shape or of the graph is part of a review.

    Example:

        torch_contract(
            name = "ranker_contract",
            golden = "ranker.contract.txt",
            program = ":ranker",
        )

    Args:
      name: of the target.
      program: a program, such as a torch_export target.
      golden: a checked-in file that must have the same text. The test NAME_test compares them, and
        says how to update the file. Start with an empty one.
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
    target = native.package_relative_label(name)
    file = native.package_relative_label(golden)
    package = native.package_name() + "/" if native.package_name() else ""
    diff_test(
        name = name + "_test",
        size = "small",
        failure_message = "\n".join([
            "What %s takes or gives is no longer what %s says." % (label_text(native.package_relative_label(program)), file.name),
            "If that is meant:",
            "  bazel build %s && cat bazel-bin/%s%s.txt > %s%s" % (
                label_text(target),
                package,
                name,
                file.package + "/" if file.package else "",
                file.name,
            ),
        ]),
        file1 = golden,
        file2 = ":" + name,
        **{
            key: value
            for key, value in kwargs.items()
            if key in ["tags", "testonly", "visibility"]
        }
    )
