"""What servers, repositories and tests of programs have with them."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")
load("//export:defs.bzl", "torch_export")
load("//program:defs.bzl", "torch_contract_test", "torch_program_test")
load("//serving:defs.bzl", "TorchModelRepositoryInfo", "torch_model_repository", "torch_server")
load(":refusal.bzl", "refusal_test")

def _repository_test_impl(ctx):
    env = analysistest.begin(ctx)
    target = analysistest.target_under_test(env)
    info = target[TorchModelRepositoryInfo]
    places = ["tests/rules/_repository/scaler/2", "tests/rules/_repository/scaler/1"]
    asserts.equals(env, places, [file.short_path for file in info.programs.to_list()])
    asserts.equals(env, info.programs.to_list(), target[DefaultInfo].files.to_list())
    asserts.equals(env, info.programs.to_list(), target[DefaultInfo].default_runfiles.files.to_list())
    asserts.equals(env, "slipway/tests/rules/_repository/scaler/2", info.rlocation_path)
    asserts.equals(
        env,
        ["tests.rules.operators", "tests.rules.other_operators"],
        sorted(info.custom_ops.modules.to_list()),
    )
    asserts.equals(env, [info.manifest], target[OutputGroupInfo].manifest.to_list())

    actions = {action.mnemonic: action for action in analysistest.target_actions(env)}
    asserts.equals(env, ["Symlink", "TorchManifest"], sorted(actions))
    manifest = actions["TorchManifest"]
    asserts.equals(env, [info.manifest], manifest.outputs.to_list())
    asserts.equals(env, "0", manifest.env["PYTHONHASHSEED"])

    # In the order of their places, so that the order in a BUILD file changes no manifest.
    entries = [argument.split("\t")[:2] for argument in manifest.argv if "\t" in argument]
    asserts.equals(env, [["scaler/1", "//tests/rules:_with_operators"], ["scaler/2", "//tests/rules:_with_both"]], entries)
    return analysistest.end(env)

_repository_test = analysistest.make(_repository_test_impl)

def _main_test_impl(ctx):
    env = analysistest.begin(ctx)
    target = analysistest.target_under_test(env)
    (action,) = analysistest.target_actions(env)
    for part in ctx.attr.contains:
        asserts.true(env, part in action.content, "%r is not in: %s" % (part, action.content))
    asserts.true(env, "tests/rules/libraries" in "\n".join(target[PyInfo].imports.to_list()))
    asserts.equals(
        env,
        ["operators.py", "other_operators.py"],
        sorted([file.basename for file in target[PyInfo].transitive_sources.to_list()]),
    )
    return analysistest.end(env)

_main_test = analysistest.make(
    _main_test_impl,
    attrs = {"contains": attr.string_list(mandatory = True)},
)

def _runfiles_test_impl(ctx):
    env = analysistest.begin(ctx)
    runfiles = analysistest.target_under_test(env)[DefaultInfo].default_runfiles.files.to_list()
    paths = {file.short_path: None for file in runfiles}
    for path in ctx.attr.paths:
        asserts.true(env, path in paths, path + " is not among the runfiles")
    return analysistest.end(env)

_runfiles_test = analysistest.make(
    _runfiles_test_impl,
    attrs = {"paths": attr.string_list(mandatory = True)},
)

def _update_test_impl(ctx):
    env = analysistest.begin(ctx)
    contents = [action.content for action in analysistest.target_actions(env) if action.mnemonic == "FileWrite"]
    asserts.true(env, "cat 'tests/rules/_contract_test.generated' > \"$BUILD_WORKSPACE_DIRECTORY\"/'tests/rules/models.manifest.txt'" in contents[0], contents[0])
    return analysistest.end(env)

_update_test = analysistest.make(_update_test_impl)

def running_rule_test_suite(*, name):
    """Tests at analysis of torch_model_repository, torch_server, torch_program_test and torch_contract_test.

    Args:
      name: of the test suite.
    """
    torch_export(
        name = "_with_operators",
        custom_ops = [":operators"],
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    torch_export(
        name = "_with_both",
        custom_ops = [
            ":operators",
            ":other_operators",
        ],
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    programs = {
        ":_with_both": "scaler/2",
        ":_with_operators": "scaler/1",
    }
    torch_model_repository(
        name = "_repository",
        programs = programs,
        tags = ["manual"],
    )
    _repository_test(
        name = name + "_repository",
        target_under_test = ":_repository",
    )

    # Neither of them names the operators.
    torch_server(
        name = "_server",
        flags = ["--port=0"],
        programs = programs,
        tags = ["manual"],
        deps = [":model"],
    )

    # What it has is chosen by the platform or a flag.
    torch_server(
        name = "_chosen_server",
        compiled = select({"//conditions:default": "never"}),
        config = select({"//conditions:default": "server.toml"}),
        custom_ops = select({"//conditions:default": [":operators"]}),
        data = select({"//conditions:default": ["BUILD"]}),
        device = select({"//conditions:default": "auto"}),
        flags = select({"//conditions:default": ["--port=0"]}),
        programs = select({"//conditions:default": programs}),
        tags = ["manual"],
    )
    torch_server(
        name = "_unconfigured_server",
        config = select({"//conditions:default": None}),
        programs = programs,
        tags = ["manual"],
    )
    torch_program_test(
        name = "_program_test",
        program = ":_with_both",
        tags = ["manual"],
    )

    # This one has some of its own.
    torch_program_test(
        name = "_program_with_more_test",
        custom_ops = [":other_operators"],
        program = ":_with_operators",
        tags = ["manual"],
    )
    _main_test(
        name = name + "_server_main",
        contains = [
            "[\"--port=0\",\"--custom-ops=tests.rules.operators\",\"--custom-ops=tests.rules.other_operators\"]",
            "Starts //tests/rules:_server.",
        ],
        target_under_test = ":_server.main",
    )
    _main_test(
        name = name + "_chosen_server_main",
        contains = [
            "[\"--device=auto\",\"--compiled=never\",\"--port=0\",",
            ", \"slipway/tests/rules/server.toml\"))",
        ],
        target_under_test = ":_chosen_server.main",
    )
    _main_test(
        name = name + "_unconfigured_server_main",
        contains = [
            "[\"--custom-ops=",
            ", \"\"))",
        ],
        target_under_test = ":_unconfigured_server.main",
    )
    _main_test(
        name = name + "_program_test_main",
        contains = ["[\"tests.rules.operators\",\"tests.rules.other_operators\"]"],
        target_under_test = ":_program_test.main",
    )
    _main_test(
        name = name + "_program_with_more_test_main",
        contains = ["[\"tests.rules.other_operators\",\"tests.rules.operators\"]"],
        target_under_test = ":_program_with_more_test.main",
    )
    for target, paths in {
        "_chosen_server": ["tests/rules/_chosen_server.repository/scaler/2", "tests/rules/BUILD", "tests/rules/server.toml"],
        "_program_test": ["tests/rules/_with_both.program", "tests/rules/operators.py", "tests/rules/_program_test_main.py"],
        "_server": ["tests/rules/_server.repository/scaler/2", "tests/rules/operators.py", "tests/rules/_server_main.py", "tests/rules/model.py", "serving/server.py"],
    }.items():
        _runfiles_test(
            name = "%s%s_runfiles" % (name, target),
            paths = paths,
            target_under_test = ":" + target,
        )

    torch_contract_test(
        name = "_contract_test",
        golden = "models.manifest.txt",
        program = ":_with_both",
        tags = ["manual"],
    )
    _update_test(
        name = name + "_update",
        target_under_test = ":_contract_test.update",
    )

    # It cannot be built: the golden file is not checked in.
    torch_contract_test(
        name = "_contract_of_itself_test",
        golden = ":_contract_test.contract",
        program = ":_with_both",
        tags = ["manual"],
    )
    torch_server(
        name = "_server_without_operators",
        custom_ops = [":no_python"],
        programs = programs,
        tags = ["manual"],
    )
    tests = []
    for case, (target, expected) in {
        "generated_golden": ("_contract_of_itself_test.update", "the golden file //tests/rules:_contract_test.contract must be checked in, in this workspace"),
        "operators_of_server": ("_server_without_operators.main", "custom_ops has //tests/rules:no_python, which is no Python library"),
    }.items():
        refusal_test(
            name = "%s_%s" % (name, case),
            expected = expected,
            target_under_test = ":" + target,
        )
        tests.append("%s_%s" % (name, case))
    native.test_suite(
        name = name,
        tests = tests + [
            name + suffix
            for suffix in [
                "_chosen_server_main",
                "_chosen_server_runfiles",
                "_program_test_main",
                "_program_test_runfiles",
                "_program_with_more_test_main",
                "_repository",
                "_server_main",
                "_server_runfiles",
                "_unconfigured_server_main",
                "_update",
            ]
        ],
    )
