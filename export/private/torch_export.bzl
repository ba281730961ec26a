"""Implementation of torch_export."""

load("//export:providers.bzl", "TorchProgramInfo")
load("//program/private:custom_ops.bzl", "custom_ops_info")
load("//program/private:labels.bzl", "label_text")
load(":action.bzl", "ENVIRONMENT_ATTRS", "export_environment", "import_roots")
load(":compile.bzl", "COMPILE_ATTRIBUTES", "check_compile_attributes", "compile_program")
load(":output_groups.bzl", "OUTPUT_GROUP_ATTRIBUTES", "OUTPUT_GROUP_DOC", "program_output_groups")

# What paths, labels and calls have in them, and names of Python do not.
_STRANGE = " /\\-()[]@"

def _check_entry_point(label, entry_point):
    module, _, function = entry_point.partition(":")
    names = module.split(".") + [function]
    strange = [character for character in entry_point.elems() if character in _STRANGE]
    if strange or not all(names) or ":" in function:
        fail("torch_export %s: entry_point is \"%s\"; it must be \"MODULE:FUNCTION\", as in \"models.ranker:export_spec\" for the function export_spec of models/ranker.py" %
             (label_text(label), entry_point))

def _check_model(label, model):
    if PyInfo not in model:
        fail("torch_export %s: model is %s, which is no Python library; it must be a py_library that has the module of entry_point in its srcs" %
             (label_text(label), label_text(model.label)))

def _torch_export_impl(ctx):
    model = ctx.attr.model
    _check_model(ctx.label, model)
    _check_entry_point(ctx.label, ctx.attr.entry_point)
    check_compile_attributes(ctx)
    custom_ops = custom_ops_info(ctx, ctx.attr.custom_ops)
    program = ctx.actions.declare_directory(ctx.label.name + ".program")
    graphs = program
    if ctx.attr.compile:
        graphs = ctx.actions.declare_directory(ctx.label.name + ".graphs.program")
        compile_program(ctx, custom_ops = custom_ops, graphs = graphs, program = program)

    arguments = ctx.actions.args()
    arguments.use_param_file("@%s", use_always = True)
    arguments.set_param_file_format("multiline")
    arguments.add("--label", label_text(ctx.label))
    arguments.add("--entry_point", ctx.attr.entry_point)
    python = [model] + ctx.attr.custom_ops
    roots = [root for target in python for root in import_roots(ctx, target)]
    arguments.add_all(roots, before_each = "--import_root", uniquify = True)
    arguments.add_all(custom_ops.modules, before_each = "--custom_ops")
    for file in ctx.files.weights:
        # The label as the BUILD file has it: the owner of a generated file is the rule that made it.
        name = label_text(ctx.attr.weights.label)
        if len(ctx.files.weights) > 1:
            name = "%s of %s" % (file.basename, name)
        arguments.add_all("--weights", [name, file.path])
    arguments.add("--output", graphs.path)

    ctx.actions.run(
        mnemonic = "TorchExport",
        progress_message = "Exporting %{label}",
        executable = ctx.executable.exporter,
        arguments = [arguments],
        inputs = depset(transitive = [
            depset(ctx.files.data + ctx.files.weights),
        ] + [
            target[DefaultInfo].default_runfiles.files
            for target in ctx.attr.data
        ] + [
            target[PyInfo].transitive_sources
            for target in python
        ] + [
            target[DefaultInfo].default_runfiles.files
            for target in python
        ]),
        outputs = [graphs],
        execution_requirements = {
            "requires-worker-protocol": "json",
            "supports-worker-cancellation": "1",
            "supports-workers": "1",
        },
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
                "rule": "torch_export",
                "entry_point": ctx.attr.entry_point,
            } | ({"checkpoint": label_text(ctx.attr.weights.label)} if ctx.attr.weights else {}),
            custom_ops = custom_ops,
        ),
    ]

torch_export = rule(
    implementation = _torch_export_impl,
    doc = """Exports a PyTorch model to a program: one graph, its weights, and its contract.

`bazel build` runs the entry point, traces the model that it returns, and checks the program against the model. The
output is the directory NAME.program, the same bytes on any machine.

Example:

    torch_export(
        name = "ranker",
        entry_point = "models.ranker:export_spec",
        model = ":ranker_model",
    )
""" + OUTPUT_GROUP_DOC,
    attrs = ENVIRONMENT_ATTRS | {
        "custom_ops": attr.label_list(
            doc = "py_library targets whose modules register the operators, outside torch's own, that the graph may call. torch_server and torch_program_test get them from here.",
        ),
        "data": attr.label_list(
            allow_files = True,
            doc = "Files that the entry point reads, beside those in `data` of the model's py_library. `slipway.export.data_path(\"//models:settings.json\")` says where a file is, whether it is checked in or made by the build.",
        ),
        "entry_point": attr.string(
            mandatory = True,
            doc = "`MODULE:FUNCTION`, as Python imports it: `models.ranker:export_spec` for the function export_spec of //models:ranker.py. The function takes no arguments and returns a `slipway.export.ExportSpec`. The random seed is 0 when it is called.",
        ),
        "exporter": attr.label(
            default = Label("//export:exporter"),
            executable = True,
            cfg = "exec",
            doc = "The program that exports, for those who extend Slipway's own. It runs as a persistent worker.",
        ),
        # Files too, so that a model.py in place of its py_library is told what to do.
        "model": attr.label(
            mandatory = True,
            allow_files = True,
            doc = "A py_library with the module of the entry point and what it imports.",
        ),
        "weights": attr.label(
            # And directories that rules make, whatever their names are.
            allow_files = [
                ".bin",
                ".index.json",
                ".pt",
                ".pth",
                ".safetensors",
            ],
            doc = "A checkpoint, which is loaded into the module that the entry point returns: a `.safetensors` file; a `.pt`, `.pth` or `.bin` file that `torch.save(model.state_dict(), ...)` wrote, from which only tensors are read, so that no checkpoint runs code; or a filegroup of several, which are shards, with or without the index `.index.json` that Hugging Face writes beside them; or a directory that a rule makes (`ctx.actions.declare_directory`) with one of these, as `save_pretrained` writes it. The entry point makes the module with weights of any values, or without, under `torch.device(\"meta\")`. Names and shapes must agree exactly.",
        ),
    } | COMPILE_ATTRIBUTES | OUTPUT_GROUP_ATTRIBUTES,
    provides = [TorchProgramInfo],
)
