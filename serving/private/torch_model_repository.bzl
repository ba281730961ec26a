"""torch_model_repository: programs laid out as a server reads them."""

load("//program:providers.bzl", "TorchProgramInfo")
load("//program/private:common_attributes.bzl", "common_attributes")
load("//program/private:custom_ops.bzl", "custom_ops_info")
load("//program/private:description.bzl", "DESCRIPTION_ENV")
load("//program/private:golden_test.bzl", "golden_test")
load("//program/private:labels.bzl", "attribute_label", "label_text")
load("//program/private:runfiles.bzl", "rlocation_path")
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

def _manifest(ctx, programs):
    """Declares the action that lists the programs by their place.

    Args:
      ctx: of the rule.
      programs: dict from place to TorchProgramInfo.
    """
    manifest = ctx.actions.declare_file(ctx.label.name + ".manifest.txt")
    arguments = ctx.actions.args()
    arguments.add("manifest")
    arguments.add("--output", manifest)
    arguments.add_all([
        "%s\t%s\t%s" % (place, label_text(programs[place].label), programs[place].program.path)
        for place in sorted(programs)
    ])
    ctx.actions.run(
        mnemonic = "TorchManifest",
        progress_message = "Listing the programs of %{label}",
        executable = ctx.executable._cli,
        arguments = [arguments],
        inputs = [info.program for info in programs.values()],
        outputs = [manifest],
        env = DESCRIPTION_ENV,
    )
    return manifest

def _torch_model_repository_impl(ctx):
    if not ctx.attr.programs:
        fail("%s: programs is empty: a server without a program has nothing to do" % label_text(ctx.label))
    programs = {}
    directories = []
    for target, place in ctx.attr.programs.items():
        _check_place(label_text(target.label), place)
        if place in programs:
            fail("%s and %s are both placed at %r: give one of them another version" %
                 (label_text(programs[place].label), label_text(target.label), place))
        programs[place] = target[TorchProgramInfo]
        directory = ctx.actions.declare_directory("%s/%s" % (ctx.label.name, place))

        # A link, because weights may be larger than anyone wants twice.
        ctx.actions.symlink(
            output = directory,
            target_file = target[TorchProgramInfo].program,
            progress_message = "Placing %{label}: " + place,
        )
        directories.append(directory)
    files = depset(directories)
    manifest = _manifest(ctx, programs)
    return [
        DefaultInfo(files = files, runfiles = ctx.runfiles(transitive_files = files)),
        OutputGroupInfo(manifest = depset([manifest])),
        TorchModelRepositoryInfo(
            custom_ops = custom_ops_info(ctx, [], inherited = [info.custom_ops for info in programs.values()]),
            manifest = manifest,
            programs = files,
            rlocation_path = rlocation_path(ctx, directories[0]),
        ),
    ]

torch_model_repository = rule(
    implementation = _torch_model_repository_impl,
    doc = """A directory that a server can serve: MODEL/VERSION/ for each program.

The output group `manifest` is NAME.manifest.txt, a line for each program: its place, the target that made it, and the
digest that a server reports for it. torch_model_repository_test compares it with a file that is checked in.

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
        "_cli": attr.label(
            default = Label("//program:cli"),
            cfg = "exec",
            executable = True,
        ),
    },
    provides = [TorchModelRepositoryInfo],
)

def _repository_manifest_impl(ctx):
    return [DefaultInfo(files = depset([ctx.attr.repository[TorchModelRepositoryInfo].manifest]))]

_repository_manifest = rule(
    implementation = _repository_manifest_impl,
    doc = "The manifest of a repository. A filegroup has it in a list, which cannot have a select in it.",
    attrs = {"repository": attr.label(mandatory = True, providers = [TorchModelRepositoryInfo])},
)

def torch_model_repository_test(*, name, repository, golden, **kwargs):
    """Fails if a repository holds other programs, elsewhere, or of other bytes than a checked-in file says.

    The log shows the difference, and the command that updates the file: `bazel run :NAME.update`. So
    nobody gives a model other weights without a reviewer who sees it, and may ask for a new version.

    Example:

        torch_model_repository_test(
            name = "models_test",
            golden = "models.manifest.txt",
            repository = ":models",
        )

    Args:
      name: of the test. `NAME.manifest` is the repository's manifest.
      repository: a torch_model_repository; that of a torch_server is `SERVER.repository`.
      golden: the checked-in file. Start with an empty one.
      **kwargs: what every test takes (size, tags, visibility, ...). The size is small unless given.
    """
    label = attribute_label(repository)
    manifest = name + ".manifest"
    _repository_manifest(
        name = manifest,
        testonly = True,
        repository = repository,
        **common_attributes(kwargs)
    )
    golden_test(
        name = name,
        file = ":" + manifest,
        golden = golden,
        subject = "What %s holds" % (label_text(label) if label else "the repository"),
        **kwargs
    )
