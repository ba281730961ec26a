"""What actions that make programs have in common."""

# Bytes of a program that must not depend on the machine that made it.
EXPORT_ENV = {
    # Random weights and example inputs must not depend on the machine's vector units.
    "ATEN_CPU_CAPABILITY": "default",
    # A build never depends on which accelerators its machine has.
    "CUDA_VISIBLE_DEVICES": "",
    # The order of a sum depends on how many threads share it.
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
}

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
