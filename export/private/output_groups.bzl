"""What targets that make programs tell of them, if they are asked."""

load("//program/private:description.bzl", "describe_program")

OUTPUT_GROUP_ATTRIBUTES = {
    "_cli": attr.label(
        default = Label("//program:cli"),
        executable = True,
        cfg = "exec",
    ),
    "_reporter": attr.label(
        default = Label("//export:reporter"),
        executable = True,
        cfg = "exec",
    ),
}

OUTPUT_GROUP_DOC = """
Output groups, which are made only if they are asked for (`bazel build --output_groups=contract //models:ranker`):

- `contract`: NAME.program.contract.txt, what the program takes and gives, as torch_contract writes it.
- `report`: NAME.program.report.json, what was done: the target, the methods with the example they were traced on, the
  calls on which program and model were compared and those that were too large for it, how often each operator is
  called, how many weights and bytes there are, the cases, the digests, and which versions made it.
- `debug`: NAME.program.graph.txt, the graph: a line for each node, with the line of the model that it comes from.
"""

def program_output_groups(ctx, *, program, facts, custom_ops):
    """Returns the OutputGroupInfo of a target that makes a program.

    Args:
      ctx: of a rule with OUTPUT_GROUP_ATTRIBUTES.
      program: File: the program's directory.
      facts: dict from string to string: what the report says of the target.
      custom_ops: TorchCustomOpsInfo, which the report lists.
    """
    groups = {
        "contract": (".program.contract.txt", "TorchContract", ctx.executable._cli, ["describe", "--review"]),
        "debug": (".program.graph.txt", "TorchGraph", ctx.executable._cli, ["graph"]),
        "report": (
            ".program.report.json",
            "TorchReport",
            ctx.executable._reporter,
            ["--fact=%s=%s" % fact for fact in facts.items()] +
            ["--custom-ops=" + module for module in custom_ops.modules.to_list()],
        ),
    }
    files = {}
    for group, (suffix, mnemonic, tool, arguments) in groups.items():
        output = ctx.actions.declare_file(ctx.label.name + suffix)
        describe_program(
            ctx,
            tool = tool,
            program = program,
            output = output,
            mnemonic = mnemonic,
            progress_message = "Writing the %s of %%{label}" % {"debug": "graph"}.get(group, group),
            arguments = arguments,
        )
        files[group] = depset([output])
    return OutputGroupInfo(**files)
