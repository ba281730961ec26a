"""Implementation of torch_program_from_pt2."""

load("//export:providers.bzl", "TorchProgramInfo")
load("//program:python_modules.bzl", "python_modules")
load(":action.bzl", "ENVIRONMENT_ATTRS", "export_environment", "import_roots")

def _torch_program_from_pt2_impl(ctx):
    program = ctx.actions.declare_directory(ctx.label.name + ".program")
    custom_ops = ctx.attr.custom_ops

    arguments = ctx.actions.args()
    arguments.use_param_file("@%s", use_always = True)
    arguments.set_param_file_format("multiline")
    arguments.add(str(ctx.label).lstrip("@"), format = "--label=%s")
    arguments.add_all([
        old + "=" + new
        for old, new in ctx.attr.symbol_names.items()
    ], before_each = "--symbol-name")
    roots = [root for target in custom_ops for root in import_roots(ctx, target)]
    arguments.add_all(roots, format_each = "--import-root=%s", uniquify = True)
    arguments.add_all(python_modules(custom_ops), before_each = "--custom-ops")
    arguments.add(ctx.file.src)
    arguments.add(program.path)

    ctx.actions.run(
        mnemonic = "TorchProgramFromPt2",
        progress_message = "Making a program of an archive, %{label}",
        executable = ctx.executable.converter,
        arguments = [arguments],
        inputs = depset([ctx.file.src], transitive = [
            target[PyInfo].transitive_sources
            for target in custom_ops
        ] + [
            target[DefaultInfo].default_runfiles.files
            for target in custom_ops
        ]),
        outputs = [program],
        env = export_environment(ctx),
    )
    files = depset([program])
    return [
        DefaultInfo(files = files, runfiles = ctx.runfiles([program])),
        TorchProgramInfo(label = ctx.label, program = program),
    ]

_torch_program_from_pt2 = rule(
    implementation = _torch_program_from_pt2_impl,
    doc = "Makes a program directory, NAME.program, of an archive that torch.export.save wrote.",
    attrs = ENVIRONMENT_ATTRS | {
        "converter": attr.label(
            default = Label("//export:from_pt2"),
            executable = True,
            cfg = "exec",
            doc = "The program that converts.",
        ),
        "custom_ops": attr.label_list(
            providers = [PyInfo],
            doc = "py_library targets whose modules register the operators, outside torch's own, that the archive calls. A server of the program needs them too.",
        ),
        "src": attr.label(
            allow_single_file = [".pt2"],
            mandatory = True,
            doc = "The archive. Torch's loader unpickles it: trusted files only.",
        ),
        "symbol_names": attr.string_dict(
            doc = "Better names for symbols, of which torch keeps none: {\"x_0\": \"batch\"}.",
        ),
    },
    provides = [TorchProgramInfo],
)

def torch_program_from_pt2(*, name, src, **kwargs):
    """Makes a program of an archive that `torch.export.save` wrote.

    The output is the directory NAME.program, as torch_export makes it, with the contract that
    the archive's ranges and guards and its graph imply.

    The action runs torch's own loader, which unpickles: give it only archives that you trust
    as you trust code.

    Args:
      name: of the target.
      src: the `.pt2` file, with its example inputs (torch keeps them unless told otherwise).
      **kwargs: `symbol_names`, better names for symbols, as a dict from `x_0`, the first
        dimension that one is; `custom_ops`, libraries of operators; `converter`, another
        program; and what every rule takes (tags, visibility, ...).
    """
    _torch_program_from_pt2(
        name = name,
        src = src,
        **kwargs
    )
