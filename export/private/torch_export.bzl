"""Implementation of torch_export."""

load("//export:providers.bzl", "TorchProgramInfo")
load("//program:python_modules.bzl", "python_modules")
load(":action.bzl", "ENVIRONMENT_ATTRS", "export_environment", "import_roots")

def _torch_export_impl(ctx):
    model = ctx.attr.model
    module, separator, function = ctx.attr.entry_point.partition(":")
    if not module or not separator or not function:
        fail("torch_export %s: entry_point is \"%s\"; it must be \"MODULE:FUNCTION\", as in \"models.ranker:export_spec\"" % (ctx.label, ctx.attr.entry_point))
    program = ctx.actions.declare_directory(ctx.label.name + ".program")

    arguments = ctx.actions.args()
    arguments.use_param_file("@%s", use_always = True)
    arguments.set_param_file_format("multiline")
    arguments.add("--label", str(ctx.label).lstrip("@"))
    arguments.add("--entry_point", ctx.attr.entry_point)
    python = [model] + ctx.attr.custom_ops
    roots = [root for target in python for root in import_roots(ctx, target)]
    arguments.add_all(roots, before_each = "--import_root", uniquify = True)
    arguments.add_all(python_modules(ctx.attr.custom_ops), before_each = "--custom_ops")
    arguments.add("--output", program.path)

    ctx.actions.run(
        mnemonic = "TorchExport",
        progress_message = "Exporting %{label}",
        executable = ctx.executable.exporter,
        arguments = [arguments],
        inputs = depset(transitive = [
            depset(ctx.files.data),
        ] + [
            target[PyInfo].transitive_sources
            for target in python
        ] + [
            target[DefaultInfo].default_runfiles.files
            for target in python
        ]),
        outputs = [program],
        execution_requirements = {
            "requires-worker-protocol": "json",
            "supports-workers": "1",
        },
        env = export_environment(ctx),
    )
    files = depset([program])
    return [
        DefaultInfo(files = files, runfiles = ctx.runfiles([program])),
        TorchProgramInfo(label = ctx.label, program = program),
    ]

_torch_export = rule(
    implementation = _torch_export_impl,
    doc = "Exports a PyTorch model to a program directory, NAME.program.",
    attrs = ENVIRONMENT_ATTRS | {
        "custom_ops": attr.label_list(
            providers = [PyInfo],
            doc = "py_library targets whose modules register the operators, outside torch's own, that the graph may call. A server of the program needs them too.",
        ),
        "data": attr.label_list(
            allow_files = True,
            doc = "Files that the entry point reads, by their path from the workspace's root.",
        ),
        "entry_point": attr.string(
            mandatory = True,
            doc = "MODULE:FUNCTION. The function takes no arguments and returns a slipway.export.ExportSpec.",
        ),
        "exporter": attr.label(
            default = Label("//export:exporter"),
            executable = True,
            cfg = "exec",
            doc = "The program that exports.",
        ),
        "model": attr.label(
            mandatory = True,
            providers = [PyInfo],
            doc = "A py_library with the entry point's module.",
        ),
    },
    provides = [TorchProgramInfo],
)

def torch_export(*, name, model, entry_point, **kwargs):
    """Exports a PyTorch model to a program: one graph, its weights, and its contract.

    `bazel build` runs the entry point, traces the model that it returns, and checks the
    program against the model. The output is the directory NAME.program, the same bytes on
    any machine.

    Args:
      name: of the target.
      model: a py_library that holds the entry point and what it imports.
      entry_point: `MODULE:FUNCTION`, as Python imports it: `models.ranker:export_spec`
        for //models:ranker.py. The function takes no arguments and returns an `ExportSpec`.
        The random seeds of torch, numpy and Python are 0 when its module is imported and
        when it is called.
      **kwargs: `data`, files that the entry point reads; `custom_ops`, libraries of operators;
        `exporter`, another exporter; and what every rule takes (tags, visibility, ...).
    """
    _torch_export(
        name = name,
        model = model,
        entry_point = entry_point,
        **kwargs
    )
