"""What targets that make programs tell others."""

TorchCustomOpsInfo = provider(
    doc = "Python libraries that register operators with torch, outside torch's own.",
    fields = {
        "imports": "depset of string: the import roots that they need, as in PyInfo.",
        "modules": "depset of string: the import names of the modules that register operators, each once, in the order in which they are imported.",
        "runfiles": "runfiles: what the libraries need when they run.",
        "transitive_sources": "depset of File: the Python files of the libraries and of what they depend on, as in PyInfo.",
    },
)

def _torch_program_info_init(*, program, label, custom_ops = None):
    """Makes the provider.

    Args:
      program: File: the program's directory.
      label: Label: of the target that made it.
      custom_ops: TorchCustomOpsInfo: the operators that the program calls; None where there are none.
    """

    # Of what is checked in Bazel does not say whether it is one.
    if not program.is_directory and not program.is_source:
        fail("%s: the program %s is no directory: make it with ctx.actions.declare_directory" % (label, program.short_path))
    if custom_ops == None:
        custom_ops = TorchCustomOpsInfo(
            imports = depset(),
            modules = depset(),
            runfiles = None,
            transitive_sources = depset(),
        )
    return {"custom_ops": custom_ops, "label": label, "program": program}

# The second is the constructor without the checks, which nobody needs.
TorchProgramInfo, _new_torch_program_info = provider(
    doc = """A program, as torch_export makes it.

A rule of your own that makes programs returns it, so that all others take its targets:

    TorchProgramInfo(program = directory, label = ctx.label)

`custom_ops` may be left out where there are none.
""",
    fields = {
        "custom_ops": "TorchCustomOpsInfo: the libraries of operators that the program was exported with, and that whatever runs it must import; torch_server and torch_program_test do.",
        "label": "Label: of the target that made it, for messages.",
        "program": "File: the program's directory, NAME.program.",
    },
    init = _torch_program_info_init,
)
