"""Libraries of operators, from the rules that export with them to those that run what they export."""

load("//program:providers.bzl", "TorchCustomOpsInfo")
load("//program:python_modules.bzl", "python_modules")
load(":labels.bzl", "label_text")

def custom_ops_info(ctx, targets, inherited = []):
    """Returns the TorchCustomOpsInfo of libraries, and of the programs that a target is about.

    Args:
      ctx: of the rule.
      targets: the py_library targets that an attribute `custom_ops` names.
      inherited: TorchCustomOpsInfo of programs.
    """
    for target in targets:
        if PyInfo not in target:
            fail("%s: custom_ops has %s, which is no Python library: name the py_library that registers the operators" %
                 (label_text(ctx.label), label_text(target.label)))
    return TorchCustomOpsInfo(
        imports = depset(transitive = [
            target[PyInfo].imports
            for target in targets
        ] + [info.imports for info in inherited]),
        modules = depset(
            python_modules(targets),
            transitive = [info.modules for info in inherited],
            order = "preorder",
        ),
        runfiles = ctx.runfiles().merge_all([
            target[DefaultInfo].default_runfiles
            for target in targets
        ] + [info.runfiles for info in inherited if info.runfiles]),
        transitive_sources = depset(transitive = [
            target[PyInfo].transitive_sources
            for target in targets
        ] + [info.transitive_sources for info in inherited]),
    )

def main_providers(ctx, custom_ops, files):
    """Returns the providers of a target that writes a main program, for the `deps` of what runs it.

    Args:
      ctx: of the rule; its output `main` is the program.
      custom_ops: TorchCustomOpsInfo: what it imports by the names in it.
      files: list of File: what it reads by the paths in it.
    """
    return [
        DefaultInfo(
            files = depset([ctx.outputs.main]),
            # Here rather than in `data` of what runs it: a list of that cannot have a select in it.
            runfiles = ctx.runfiles(files).merge(custom_ops.runfiles),
        ),
        PyInfo(
            imports = custom_ops.imports,
            transitive_sources = custom_ops.transitive_sources,
        ),
    ]
