"""Where files lie among the runfiles of what `bazel run` and `bazel test` start."""

def rlocation_path(ctx, file):
    """Returns the runfiles path of a file, as a runfiles library takes it.

    Args:
      ctx: of the rule.
      file: one of its files.
    """
    if file.short_path.startswith("../"):
        return file.short_path.removeprefix("../")
    return ctx.workspace_name + "/" + file.short_path
