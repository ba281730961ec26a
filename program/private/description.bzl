"""Actions that describe a program in text, run only if somebody asks for their output."""

# Text must not depend on the process that wrote it.
DESCRIPTION_ENV = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
}

def describe_program(ctx, *, tool, program, output, mnemonic, progress_message, arguments):
    """Declares the action that has a tool write about a program.

    Args:
      ctx: of the rule.
      tool: the executable, such as that of //program:cli, which takes `--output FILE PROGRAM`.
      program: File: the program's directory.
      output: File: the text.
      mnemonic: of the action.
      progress_message: of the action.
      arguments: list of strings that come first.
    """
    command_line = ctx.actions.args()
    command_line.add_all(arguments)
    command_line.add("--output", output)

    # Not add(program): directories given to that are expanded to their files.
    command_line.add(program.path)
    ctx.actions.run(
        mnemonic = mnemonic,
        progress_message = progress_message,
        executable = tool,
        arguments = [command_line],
        inputs = [program],
        outputs = [output],
        env = DESCRIPTION_ENV,
    )
