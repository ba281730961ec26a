"""The import names of py_library targets, for programs that import what a BUILD file names."""

def python_modules(targets):
    """Returns the import names of the targets' own source files, in order.

    A file is imported from its repository's root, as Bazel's Python rules have it.

    Args:
      targets: py_library targets.
    """
    modules = []
    for target in targets:
        for file in target[DefaultInfo].files.to_list():
            if file.extension != "py":
                continue
            path = file.short_path

            # ../REPOSITORY/PATH is how a file of another repository is called; its runfiles lie at
            # REPOSITORY/PATH.
            if path.startswith("../"):
                path = path.removeprefix("../")
            modules.append(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    return modules
