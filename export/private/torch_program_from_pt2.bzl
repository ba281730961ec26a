"""Implementation of torch_program_from_pt2."""

load("//export:providers.bzl", "TorchProgramInfo")
load("//program/private:custom_ops.bzl", "custom_ops_info")
load("//program/private:labels.bzl", "label_text")
load(":action.bzl", "ENVIRONMENT_ATTRS", "export_environment", "import_roots")
load(":output_groups.bzl", "OUTPUT_GROUP_ATTRIBUTES", "OUTPUT_GROUP_DOC", "program_output_groups")

def _torch_program_from_pt2_impl(ctx):
    program = ctx.actions.declare_directory(ctx.label.name + ".program")
    custom_ops = custom_ops_info(ctx, ctx.attr.custom_ops)

    arguments = ctx.actions.args()
    arguments.use_param_file("@%s", use_always = True)
    arguments.set_param_file_format("multiline")
    arguments.add(label_text(ctx.label), format = "--label=%s")
    arguments.add_all([
        old + "=" + new
        for old, new in ctx.attr.symbol_names.items()
    ], before_each = "--symbol-name")
    roots = [root for target in ctx.attr.custom_ops for root in import_roots(ctx, target)]
    arguments.add_all(roots, format_each = "--import-root=%s", uniquify = True)
    arguments.add_all(custom_ops.modules, before_each = "--custom-ops")
    arguments.add(ctx.file.src)
    arguments.add(program.path)

    ctx.actions.run(
        mnemonic = "TorchProgramFromPt2",
        progress_message = "Making a program of an archive, %{label}",
        executable = ctx.executable.converter,
        arguments = [arguments],
        inputs = depset([ctx.file.src], transitive = [
            custom_ops.transitive_sources,
            custom_ops.runfiles.files,
        ]),
        outputs = [program],
        env = export_environment(ctx),
    )
    files = depset([program])
    return [
        DefaultInfo(files = files, runfiles = ctx.runfiles([program])),
        TorchProgramInfo(
            custom_ops = custom_ops,
            label = ctx.label,
            program = program,
        ),
        program_output_groups(
            ctx,
            program = program,
            facts = {
                "label": label_text(ctx.label),
                "rule": "torch_program_from_pt2",
                "archive": ctx.file.src.short_path,
            },
            custom_ops = custom_ops,
        ),
    ]

torch_program_from_pt2 = rule(
    implementation = _torch_program_from_pt2_impl,
    doc = """Makes a program of an archive that `torch.export.save` wrote.

The output is the directory NAME.program, as torch_export makes it, with the contract that the archive's ranges and
guards and its graph imply.

The action runs torch's own loader, which unpickles: give it only archives that you trust as you trust code.

Example:

    torch_program_from_pt2(
        name = "ranker",
        src = "ranker.pt2",
        symbol_names = {"features_0": "batch"},
    )
""" + OUTPUT_GROUP_DOC,
    attrs = ENVIRONMENT_ATTRS | {
        "converter": attr.label(
            default = Label("//export:from_pt2"),
            executable = True,
            cfg = "exec",
            doc = "The program that converts, for those who extend Slipway's own.",
        ),
        "custom_ops": attr.label_list(
            doc = "py_library targets whose modules register the operators, outside torch's own, that the archive calls. What runs the program gets them from here.",
        ),
        "src": attr.label(
            allow_single_file = [".pt2"],
            mandatory = True,
            doc = "The archive, with its example inputs (torch keeps them unless told otherwise). Torch's loader unpickles it: trusted files only.",
        ),
        "symbol_names": attr.string_dict(
            doc = "Better names for symbols, of which torch keeps none: `{\"x_0\": \"batch\"}`, where `x_0` is the first dimension that one is.",
        ),
    } | OUTPUT_GROUP_ATTRIBUTES,
    provides = [TorchProgramInfo],
)
