"""A macro as users write them around torch_export."""

load("//export:defs.bzl", "torch_export")

def _checkpoint_directory_impl(ctx):
    directory = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        inputs = ctx.files.srcs,
        outputs = [directory],
        command = "cp \"$@\"",
        arguments = [ctx.actions.args().add_all(ctx.files.srcs).add(directory.path)],
    )
    return [DefaultInfo(files = depset([directory]))]

checkpoint_directory = rule(
    implementation = _checkpoint_directory_impl,
    doc = "Copies a checkpoint's files into a directory, as a rule that fetches a model would.",
    attrs = {"srcs": attr.label_list(allow_files = True)},
)

def exported_in_several_ways(*, name, **kwargs):
    """Declares a program of each format of its checkpoint, `NAME_FORMAT`, and chosen by select().

    Args:
      name: of the targets' common beginning.
      **kwargs: as for `torch_export`.
    """
    for format, weights in {
        "directory": ":checkpoint_directory",
        "safetensors": ":scaler.safetensors",
        "shards": ":shards",
        "shards_with_index": ":shards_with_index",
        "torch": ":scaler.pt",
    }.items():
        torch_export(
            name = "%s_%s" % (name, format),
            entry_point = "tests.export_targets.models:scaler",
            model = ":models",
            weights = weights,
            **kwargs
        )
    torch_export(
        name = name + "_chosen",
        data = select({
            ":optimized": [":scaler.pt"],
            "//conditions:default": [":checked_in.json"],
        }),
        entry_point = select({
            ":optimized": "tests.export_targets.models:twice",
            "//conditions:default": "tests.export_targets.models:scaler",
        }),
        model = select({
            ":optimized": ":models_of_optimized_builds",
            "//conditions:default": ":models",
        }),
        weights = select({
            ":optimized": ":scaler.pt",
            "//conditions:default": ":scaler.safetensors",
        }),
        **kwargs
    )
