"""torch_model_repository: programs laid out as a server reads them."""

load("//export:providers.bzl", "TorchProgramInfo")
load("//serving:providers.bzl", "TorchModelRepositoryInfo")

# serving/repository.py has the same rules.
_NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-"
_MAX_NAME_LENGTH = 128
_MAX_VERSION_LENGTH = 18

def _check_place(program, place):
    """Fails unless `place` is MODEL/VERSION."""
    name, _, version = place.partition("/")
    if not name or not version:
        fail("%s is placed at %r: expected MODEL/VERSION, such as \"mlp/1\"" % (program, place))
    strange = [character for character in name.elems() if character not in _NAME_CHARACTERS]
    if strange or name[0] in ".+-" or len(name) > _MAX_NAME_LENGTH:
        fail(("%s is placed at %r: the model's name must be letters, digits and any of _.+- " +
              "after a letter, a digit or _, at most %d of them") % (program, place, _MAX_NAME_LENGTH))
    if not version.isdigit() or version[0] == "0" or len(version) > _MAX_VERSION_LENGTH:
        fail("%s is placed at %r: the version must be an integer from 1, without leading zeros, not %r" %
             (program, place, version))

def _rlocation_path(ctx, file):
    if file.short_path.startswith("../"):
        return file.short_path[len("../"):]
    return ctx.workspace_name + "/" + file.short_path

def _torch_model_repository_impl(ctx):
    if not ctx.attr.programs:
        fail("programs is empty: a server without a program has nothing to do")
    taken = {}
    directories = []
    for target, place in ctx.attr.programs.items():
        _check_place(target.label, place)
        if place in taken:
            fail("%s and %s are both placed at %r: give one of them another version" %
                 (taken[place], target.label, place))
        taken[place] = target.label
        directory = ctx.actions.declare_directory("%s/%s" % (ctx.label.name, place))

        # A link, because weights may be larger than anyone wants twice.
        ctx.actions.symlink(
            output = directory,
            target_file = target[TorchProgramInfo].program,
            progress_message = "Placing %{label}: " + place,
        )
        directories.append(directory)
    files = depset(directories)
    return [
        DefaultInfo(files = files, runfiles = ctx.runfiles(transitive_files = files)),
        TorchModelRepositoryInfo(
            programs = files,
            rlocation_path = _rlocation_path(ctx, directories[0]),
        ),
    ]

torch_model_repository = rule(
    implementation = _torch_model_repository_impl,
    doc = """A directory that a server can serve: MODEL/VERSION/ for each program.

Example:

    torch_model_repository(
        name = "models",
        programs = {
            "//examples/mlp": "mlp/1",
            "//examples/resnet": "resnet/3",
        },
    )
""",
    attrs = {
        "programs": attr.label_keyed_string_dict(
            doc = "Where each program lies: MODEL/VERSION, the version an integer from 1.",
            mandatory = True,
            providers = [TorchProgramInfo],
        ),
    },
    provides = [TorchModelRepositoryInfo],
)
