"""What actions that make programs have in common."""

load("@bazel_skylib//rules:common_settings.bzl", "BuildSettingInfo")

# Bytes of a program that must not depend on the machine that made it.
EXPORT_ENV = {
    # Random weights, example inputs and the outputs of cases must not depend on the machine's
    # vector units: ATen, MKL and oneDNN each choose their own.
    "ATEN_CPU_CAPABILITY": "default",
    # A build never depends on which accelerators its machine has.
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_CBWR": "COMPATIBLE",
    # The order of a sum depends on how many threads share it.
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
}

# Of rules whose implementations call action_environment or export_environment.
ENVIRONMENT_ATTRS = {
    "_environment": attr.label(
        default = Label("//export/private:environment"),
        providers = [BuildSettingInfo],
    ),
}

def action_environment(ctx, variables):
    """Returns the variables of an action, with those of //export/private:environment over them.

    Args:
      ctx: of a rule with ENVIRONMENT_ATTRS.
      variables: dict of the action's own.
    """
    environment = dict(variables)
    for assignment in ctx.attr._environment[BuildSettingInfo].value:
        name, separator, value = assignment.partition("=")
        if not name or not separator:
            fail("%s is \"%s\"; it must be NAME=VALUE" % (ctx.attr._environment.label, assignment))
        environment[name] = value
    return environment

def export_environment(ctx):
    """Returns the variables of an action that makes a program.

    Args:
      ctx: of a rule with ENVIRONMENT_ATTRS.
    """
    return action_environment(ctx, EXPORT_ENV)

def import_roots(ctx, target):
    """Returns the folders, from the execution root, that a py_binary with a library would import from.

    Args:
      ctx: of the rule.
      target: the library.
    """
    roots = ["", ctx.bin_dir.path, ".."]

    # A library of another repository is REPOSITORY.PACKAGE.MODULE, as in runfiles, and, where
    # Bazel puts repositories themselves on the path, PACKAGE.MODULE.
    repository = target.label.workspace_name
    if repository:
        for folder in ["external", ctx.bin_dir.path + "/external"]:
            roots += [folder, folder + "/" + repository]
    for path in target[PyInfo].imports.to_list():
        repository, _, rest = path.partition("/")
        base = "" if repository == ctx.workspace_name else "external/" + repository
        for folder in ["", ctx.bin_dir.path]:
            roots.append("/".join([part for part in [folder, base, rest] if part]))
    return roots
