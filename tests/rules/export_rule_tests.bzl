"""What the rules that make programs tell others, run, and refuse."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")
load("//export:defs.bzl", "TorchProgramInfo", "torch_export", "torch_program_from_pt2")
load("//third_party:cxx_compiler_info.bzl", "cxx_compiler_info")
load(":refusal.bzl", "refusal_test")

# Whatever the caller's shell has, and whatever the machine: a change here changes keys of caches.
_ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
}

_DESCRIPTION_ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
}

def _action(env, mnemonic):
    """Returns the one action with a mnemonic."""
    actions = [action for action in analysistest.target_actions(env) if action.mnemonic == mnemonic]
    asserts.equals(env, 1, len(actions), "actions with the mnemonic " + mnemonic)
    return actions[0]

def _following(argv, flag):
    """Returns what follows each occurrence of a flag."""
    return [argv[index + 1] for index, argument in enumerate(argv) if argument == flag]

def _assert_no_absolute_path(env, argv):
    """The same action must have the same key in another folder, of another user."""
    for argument in argv:
        for part in argument.split("=") + argument.split(","):
            asserts.false(env, part.startswith("/") and not part.startswith("//"), "an absolute path: " + argument)

# Providers ----------------------------------------------------------------------------------

def _providers_test_impl(ctx):
    env = analysistest.begin(ctx)
    target = analysistest.target_under_test(env)
    name = target.label.name

    info = target[TorchProgramInfo]
    asserts.equals(env, target.label, info.label)
    asserts.equals(env, name + ".program", info.program.basename)
    asserts.true(env, info.program.is_directory, "a program is a directory")
    asserts.equals(env, ctx.attr.modules, info.custom_ops.modules.to_list())
    sources = [file.basename for file in info.custom_ops.transitive_sources.to_list()]
    asserts.equals(env, sorted([module.split(".")[-1] + ".py" for module in ctx.attr.modules]), sorted(sources))

    asserts.equals(env, [info.program], target[DefaultInfo].files.to_list())
    asserts.equals(env, [info.program], target[DefaultInfo].default_runfiles.files.to_list())

    groups = target[OutputGroupInfo]
    for group, file in {
        "contract": ".program.contract.txt",
        "debug": ".program.graph.txt",
        "report": ".program.report.json",
    }.items():
        asserts.equals(env, [name + file], [item.basename for item in groups[group].to_list()])
    return analysistest.end(env)

_providers_test = analysistest.make(
    _providers_test_impl,
    attrs = {"modules": attr.string_list()},
)

# Actions ------------------------------------------------------------------------------------

def _export_action_test_impl(ctx):
    env = analysistest.begin(ctx)
    action = _action(env, "TorchExport")
    argv = action.argv
    _assert_no_absolute_path(env, argv)
    asserts.equals(env, _ENVIRONMENT, action.env)
    asserts.equals(env, ["//tests/rules:_custom"], _following(argv, "--label"))
    asserts.equals(env, ["tests.rules.model:export_spec"], _following(argv, "--entry_point"))
    asserts.equals(env, ["tests.rules.operators", "tests.rules.other_operators"], _following(argv, "--custom_ops"))
    asserts.equals(env, [file.path for file in action.outputs.to_list()], _following(argv, "--output"))
    roots = _following(argv, "--import_root")
    asserts.equals(env, roots, [root for index, root in enumerate(roots) if root not in roots[:index]])
    asserts.true(env, "tests/rules/libraries" in roots, "the imports of a library are roots: %s" % roots)

    # The model is an input of the action and no part of its tool: otherwise each model would have a
    # worker of its own.
    inputs = [file.short_path for file in action.inputs.to_list()]
    for path in ["tests/rules/model.py", "tests/rules/operators.py", "tests/rules/BUILD", "tests/rules/archive.pt2", "tests/rules/models.manifest.txt"]:
        asserts.true(env, path in inputs, path + " is no input")
    return analysistest.end(env)

_export_action_test = analysistest.make(_export_action_test_impl)

def _shards_test_impl(ctx):
    env = analysistest.begin(ctx)
    argv = _action(env, "TorchExport").argv
    names = ["%s of //tests/rules:shards" % name for name in ["first.safetensors", "second.safetensors"]]
    asserts.equals(env, names, _following(argv, "--weights"))
    return analysistest.end(env)

_shards_test = analysistest.make(_shards_test_impl)

def _conversion_action_test_impl(ctx):
    env = analysistest.begin(ctx)
    action = _action(env, "TorchProgramFromPt2")
    argv = action.argv
    _assert_no_absolute_path(env, argv)
    asserts.equals(env, _ENVIRONMENT, action.env)
    asserts.equals(env, ["x_0=batch"], _following(argv, "--symbol-name"))
    asserts.equals(env, ["tests.rules.operators"], _following(argv, "--custom-ops"))
    asserts.true(env, "--label=//tests/rules:_converted" in argv, "no label: %s" % argv)
    asserts.equals(env, ["tests/rules/archive.pt2"], [argument for argument in argv if argument.endswith(".pt2")])
    inputs = [file.short_path for file in action.inputs.to_list()]
    for path in ["tests/rules/archive.pt2", "tests/rules/operators.py", "tests/rules/models.manifest.txt"]:
        asserts.true(env, path in inputs, path + " is no input")
    return analysistest.end(env)

_conversion_action_test = analysistest.make(_conversion_action_test_impl)

def _group_actions_test_impl(ctx):
    env = analysistest.begin(ctx)
    name = analysistest.target_under_test(env).label.name
    program = analysistest.target_under_test(env)[TorchProgramInfo].program
    for mnemonic in ["TorchContract", "TorchGraph", "TorchReport"]:
        action = _action(env, mnemonic)
        _assert_no_absolute_path(env, action.argv)
        asserts.equals(env, _DESCRIPTION_ENVIRONMENT, action.env)
        asserts.true(env, program in action.inputs.to_list(), mnemonic + " does not read the program")

        # An edit of the model that leaves the program as it is runs none of them again.
        asserts.false(env, "tests/rules/model.py" in [file.short_path for file in action.inputs.to_list()])
    facts = ["--fact=" + fact for fact in ["label=//tests/rules:" + name] + ctx.attr.facts]
    libraries = ["--custom-ops=" + module for module in ctx.attr.modules]
    asserts.equals(env, facts + libraries, [
        argument
        for argument in _action(env, "TorchReport").argv
        if argument.startswith("--fact=") or argument.startswith("--custom-ops=")
    ])

    # The program itself does not wait for them.
    outputs = [file.basename for file in _action(env, ctx.attr.mnemonic).outputs.to_list()]
    asserts.equals(env, [name + ".program"], outputs)
    return analysistest.end(env)

_group_actions_test = analysistest.make(
    _group_actions_test_impl,
    attrs = {
        "facts": attr.string_list(),
        "mnemonic": attr.string(mandatory = True),
        "modules": attr.string_list(),
    },
)

def _compile_action_test_impl(ctx):
    env = analysistest.begin(ctx)
    program = analysistest.target_under_test(env)[TorchProgramInfo].program
    export, compile = _action(env, "TorchExport"), _action(env, "TorchCompile")
    graphs = export.outputs.to_list()
    asserts.equals(env, ["_compiled.graphs.program"], [file.basename for file in graphs])
    asserts.equals(env, [program], compile.outputs.to_list())
    asserts.equals(env, [graphs[0].path, program.path], compile.argv[-2:])
    for argument in [
        "--compiler=/opt/bin/g++",
        "--instruction-set=avx512",
        "--option=max_fusion_size=8",
        "--when-slower=fail",
    ]:
        asserts.true(env, argument in compile.argv, "no %s: %s" % (argument, compile.argv))

    # Another compiler compiles again, and does not trace again; another model does both.
    compiled_from = [file.short_path for file in compile.inputs.to_list()]
    asserts.true(env, graphs[0] in compile.inputs.to_list(), "it does not read the graphs")
    asserts.true(env, "tests/rules/BUILD" in compiled_from, "the compiler's files are no inputs")
    asserts.false(env, "tests/rules/model.py" in compiled_from, "the model is an input")
    asserts.false(env, "--compiler=/opt/bin/g++" in export.argv)

    # Not what an export has: code is tried with the instruction set that it is made for.
    asserts.false(env, "ATEN_CPU_CAPABILITY" in compile.env)
    asserts.equals(env, "/usr/local/bin:/usr/bin:/bin", compile.env["PATH"])
    return analysistest.end(env)

_compile_action_test = analysistest.make(_compile_action_test_impl)

# Refusals -----------------------------------------------------------------------------------

def _file_as_program_impl(ctx):
    file = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(file, "no program")
    return [TorchProgramInfo(label = ctx.label, program = file)]

_file_as_program = rule(implementation = _file_as_program_impl)

_MODULE_FUNCTION = "it must be \"MODULE:FUNCTION\", as in \"models.ranker:export_spec\" for the function export_spec of models/ranker.py"

_ENTRY_POINTS = {
    "call": "models.ranker:export_spec()",
    "empty": "",
    "label": "//models:ranker",
    "no_function": "models.ranker:",
    "no_module": ":export_spec",
    "no_separator": "models.ranker",
    "path": "models/ranker.py:export_spec",
    "relative": ".ranker:export_spec",
    "two_separators": "models:ranker:export_spec",
}

def _refusals(name):
    """Declares targets that cannot be built, and a test for each; returns the tests' names."""
    tests = []
    for case, entry_point in _ENTRY_POINTS.items():
        torch_export(
            name = "_entry_point_" + case,
            entry_point = entry_point,
            model = ":model",
            tags = ["manual"],
        )
        refusal_test(
            name = "%s_entry_point_%s" % (name, case),
            expected = "torch_export //tests/rules:_entry_point_%s: entry_point is \"%s\"; %s" % (case, entry_point, _MODULE_FUNCTION),
            target_under_test = ":_entry_point_" + case,
        )
        tests.append("%s_entry_point_%s" % (name, case))
    for case, model in {
        "file": "model.py",
        "filegroup": ":no_python",
    }.items():
        torch_export(
            name = "_model_" + case,
            entry_point = "tests.rules.model:export_spec",
            model = model,
            tags = ["manual"],
        )
        refusal_test(
            name = "%s_model_%s" % (name, case),
            expected = "torch_export //tests/rules:_model_%s: model is //tests/rules:%s, which is no Python library; it must be a py_library that has the module of entry_point in its srcs" % (case, model.removeprefix(":")),
            target_under_test = ":_model_" + case,
        )
        tests.append("%s_model_%s" % (name, case))
    torch_export(
        name = "_operators_of_export",
        custom_ops = [":no_python"],
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    torch_program_from_pt2(
        name = "_operators_of_archive",
        src = "archive.pt2",
        custom_ops = [":no_python"],
        tags = ["manual"],
    )
    torch_program_from_pt2(
        name = "_no_archive",
        src = "model.py",
        tags = ["manual"],
    )
    cxx_compiler_info(
        name = "_no_compiler",
        path = "",
        problem = "there is none; install it",
        tags = ["manual"],
    )
    torch_export(
        name = "_compiled_without",
        compile = "aot_inductor",
        cxx_compiler = ":_no_compiler",
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    torch_export(
        name = "_options_without_compile",
        compile_options = {"max_fusion_size": "8"},
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    for case, instruction_sets in {
        "no_instruction_set": [],
        "unknown_instruction_set": ["avx2", "AVX-512"],
    }.items():
        torch_export(
            name = "_" + case,
            compile = "aot_inductor",
            cxx_compiler = ":_compiler",
            entry_point = "tests.rules.model:export_spec",
            instruction_sets = instruction_sets,
            model = ":model",
            tags = ["manual"],
        )
    _file_as_program(
        name = "_file_as_program",
        tags = ["manual"],
    )
    for case, expected in {
        "compiled_without": "torch_export //tests/rules:_compiled_without: compile = \"aot_inductor\" needs a C++ compiler, and there is none; install it",
        "file_as_program": "the program tests/rules/_file_as_program is no directory: make it with ctx.actions.declare_directory",
        "no_archive": "does not produce any torch_program_from_pt2 src files (expected .pt2)",
        "no_instruction_set": "torch_export //tests/rules:_no_instruction_set: instruction_sets is [], so that there is nothing to compile for; name avx2, avx512 or both",
        "operators_of_archive": "//tests/rules:_operators_of_archive: custom_ops has //tests/rules:no_python, which is no Python library",
        "operators_of_export": "//tests/rules:_operators_of_export: custom_ops has //tests/rules:no_python, which is no Python library: name the py_library that registers the operators",
        "options_without_compile": "torch_export //tests/rules:_options_without_compile: compile_options is given, and compile is not, so that nothing is compiled; add compile = \"aot_inductor\", or leave out compile_options, by the same select() if it depends on one",
        "unknown_instruction_set": "torch_export //tests/rules:_unknown_instruction_set: instruction_sets has \"AVX-512\"; name avx2, avx512 or both",
    }.items():
        refusal_test(
            name = "%s_%s" % (name, case),
            expected = expected,
            target_under_test = ":_" + case,
        )
        tests.append("%s_%s" % (name, case))
    return tests

def export_rule_test_suite(*, name):
    """Tests at analysis of torch_export and torch_program_from_pt2.

    Args:
      name: of the test suite.
    """
    torch_export(
        name = "_plain",
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    torch_export(
        name = "_custom",
        custom_ops = [
            ":operators",
            ":other_operators",
        ],
        data = [
            "BUILD",
            ":settings",
        ],
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
    )
    native.genrule(
        name = "_write_checkpoint",
        outs = ["checkpoint.safetensors"],
        cmd = "false",
        tags = ["manual"],
    )
    torch_export(
        name = "_weighed,once",
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
        weights = "checkpoint.safetensors",
    )
    torch_export(
        name = "_sharded",
        entry_point = "tests.rules.model:export_spec",
        model = ":model",
        tags = ["manual"],
        weights = ":shards",
    )
    torch_program_from_pt2(
        name = "_converted",
        src = "archive.pt2",
        custom_ops = [":operators"],
        symbol_names = {"x_0": "batch"},
        tags = ["manual"],
    )
    tests = []
    exported = ["rule=torch_export", "entry_point=tests.rules.model:export_spec"]
    for target, modules, mnemonic, facts in [
        ("_plain", [], "TorchExport", exported),
        ("_custom", ["tests.rules.operators", "tests.rules.other_operators"], "TorchExport", exported),
        ("_converted", ["tests.rules.operators"], "TorchProgramFromPt2", ["rule=torch_program_from_pt2", "archive=tests/rules/archive.pt2"]),

        # By the label that the BUILD file has, not by that of the rule which makes the file.
        ("_weighed,once", [], "TorchExport", exported + ["checkpoint=//tests/rules:checkpoint.safetensors"]),
    ]:
        _providers_test(
            name = "%s%s_providers" % (name, target),
            modules = modules,
            target_under_test = ":" + target,
        )
        _group_actions_test(
            name = "%s%s_group_actions" % (name, target),
            facts = facts,
            mnemonic = mnemonic,
            modules = modules,
            target_under_test = ":" + target,
        )
        tests += ["%s%s_%s" % (name, target, what) for what in ["providers", "group_actions"]]
    _export_action_test(
        name = name + "_export_action",
        target_under_test = ":_custom",
    )
    _shards_test(
        name = name + "_shards",
        target_under_test = ":_sharded",
    )
    _conversion_action_test(
        name = name + "_conversion_action",
        target_under_test = ":_converted",
    )
    cxx_compiler_info(
        name = "_compiler",
        files = ["BUILD"],
        path = "/opt/bin/g++",
        tags = ["manual"],
    )
    torch_export(
        name = "_compiled",
        compile = "aot_inductor",
        compile_options = {"max_fusion_size": "8"},
        cxx_compiler = ":_compiler",
        entry_point = "tests.rules.model:export_spec",
        instruction_sets = ["avx512"],
        model = ":model",
        tags = ["manual"],
        when_slower = "fail",
    )
    _compile_action_test(
        name = name + "_compile_action",
        target_under_test = ":_compiled",
    )
    tests += [name + suffix for suffix in ["_export_action", "_shards", "_conversion_action", "_compile_action"]]
    native.test_suite(
        name = name,
        tests = tests + _refusals(name),
    )
