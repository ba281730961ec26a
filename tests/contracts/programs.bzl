"""Programs for tests of the rules on programs."""

load("//program:providers.bzl", "TorchProgramInfo")

def _made_program_impl(ctx):
    program = ctx.actions.declare_directory(ctx.label.name + ".program")
    arguments = [argument.replace("OUTPUT", program.path) for argument in ctx.attr.arguments]
    inputs = []
    if ctx.attr.program:
        inputs.append(ctx.attr.program[TorchProgramInfo].program)
        arguments = [argument.replace("PROGRAM", inputs[0].path) for argument in arguments]
    ctx.actions.run(
        mnemonic = "MakeProgram",
        executable = ctx.executable.tool,
        arguments = arguments,
        inputs = inputs,
        outputs = [program],
    )
    return [
        DefaultInfo(files = depset([program]), runfiles = ctx.runfiles([program])),
        TorchProgramInfo(label = ctx.label, program = program),
    ]

made_program = rule(
    implementation = _made_program_impl,
    doc = "What a tool writes to OUTPUT, having read PROGRAM.",
    attrs = {
        "arguments": attr.string_list(),
        "program": attr.label(providers = [TorchProgramInfo]),
        "tool": attr.label(cfg = "exec", executable = True, mandatory = True),
    },
)
