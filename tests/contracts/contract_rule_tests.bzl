"""What the rules on programs tell others, run, and refuse."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")
load("//program:defs.bzl", "torch_contract", "torch_contract_test", "torch_program_compatibility_test", "torch_program_test")

def _describes_test_impl(ctx):
    env = analysistest.begin(ctx)
    files = analysistest.target_under_test(env)[DefaultInfo].files.to_list()
    asserts.equals(env, [ctx.attr.file], [file.basename for file in files])
    (action,) = analysistest.target_actions(env)
    asserts.equals(env, "TorchContract", action.mnemonic)
    asserts.equals(env, ctx.attr.review, "--review" in action.argv)
    asserts.equals(env, "0", action.env["PYTHONHASHSEED"])

    # The text depends on nothing but the program and the tool.
    programs = [file.basename for file in action.inputs.to_list() if file.is_directory and file.basename.endswith(".program")]
    asserts.equals(env, ["ranker.program"], programs)
    return analysistest.end(env)

_describes_test = analysistest.make(
    _describes_test_impl,
    attrs = {
        "file": attr.string(mandatory = True),
        "review": attr.bool(mandatory = True),
    },
)

def _writes_main_test_impl(ctx):
    env = analysistest.begin(ctx)
    (action,) = analysistest.target_actions(env)
    for part in ctx.attr.contains:
        asserts.true(env, part in action.content, "%r is not in: %s" % (part, action.content))
    return analysistest.end(env)

_writes_main_test = analysistest.make(
    _writes_main_test_impl,
    attrs = {"contains": attr.string_list(mandatory = True)},
)

def _check_properties(name):
    """Fails unless a target is built where the macro was told to build what it makes."""
    rule = native.existing_rule(name)
    found = (rule["exec_properties"], len(rule["exec_compatible_with"]), len(rule["target_compatible_with"]))
    if found != ({"Pool": "models"}, 1, 1):
        fail("%s is built with %s" % (name, found))

def _refusal_test_impl(ctx):
    env = analysistest.begin(ctx)
    asserts.expect_failure(env, ctx.attr.expected)
    return analysistest.end(env)

_refusal_test = analysistest.make(
    _refusal_test_impl,
    attrs = {"expected": attr.string(mandatory = True)},
    expect_failure = True,
)

def contract_rule_test_suite(*, name):
    """Tests at analysis of torch_contract and the two tests on programs.

    Args:
      name: of the test suite.
    """
    tests = []

    torch_contract(
        name = "_plain",
        program = ":ranker",
        tags = ["manual"],
    )
    _describes_test(
        name = name + "_plain",
        file = "_plain.txt",
        review = True,
        target_under_test = ":_plain",
    )
    torch_contract(
        name = "_with_weights",
        program = ":ranker",
        tags = ["manual"],
        weights = True,
    )
    _describes_test(
        name = name + "_with_weights",
        file = "_with_weights.txt",
        review = False,
        target_under_test = ":_with_weights",
    )
    tests += [name + "_plain", name + "_with_weights"]

    # The command in the main program is what the log says when the test fails.
    _writes_main_test(
        name = name + "_update_command",
        contains = [
            "slipway/tests/contracts/ranker.contract.json",
            "bazel run //program:cli -- baseline ",
            "tests/contracts/ranker_narrower.program > tests/contracts/ranker.contract.json",
        ],
        target_under_test = ":narrower_compatibility_test.main",
    )
    _writes_main_test(
        name = name + "_program_as_baseline",
        contains = ["[\"slipway/tests/contracts/ranker.program\",\"//tests/contracts:ranker\",\"slipway/tests/contracts/ranker_wider.program\",\"//tests/contracts:ranker_wider\",\"\",\"true\"]"],
        target_under_test = ":against_program_test.main",
    )
    _writes_main_test(
        name = name + "_custom_ops",
        contains = ["[\"tests.contracts.operators\"]"],
        target_under_test = ":operators_test.main",
    )
    tests += [name + suffix for suffix in ["_update_command", "_program_as_baseline", "_custom_ops"]]

    # Also for the targets that are made beside the one that is named.
    properties = {"Pool": "models", "test.Pool": "tests"}
    torch_program_test(
        name = "_with_properties_test",
        exec_compatible_with = ["@platforms//os:linux"],
        exec_properties = properties,
        program = ":ranker",
        tags = ["manual"],
        target_compatible_with = ["@platforms//os:linux"],
    )
    torch_contract_test(
        name = "_contract_with_properties_test",
        exec_compatible_with = ["@platforms//os:linux"],
        exec_properties = properties,
        golden = "ranker.contract.txt",
        program = ":ranker",
        tags = ["manual"],
        target_compatible_with = ["@platforms//os:linux"],
    )
    for hidden in [
        "_with_properties_test.main",
        "_contract_with_properties_test.contract",
        "_contract_with_properties_test.generated",
        "_contract_with_properties_test.update",
    ]:
        _check_properties(hidden)

    # They cannot be built.
    torch_contract(
        name = "_of_no_program",
        program = ":write_program",
        tags = ["manual"],
    )
    torch_program_test(
        name = "_of_no_program_test",
        program = ":write_program",
        tags = ["manual"],
    )
    torch_program_compatibility_test(
        name = "_of_no_program_compatibility_test",
        baseline = "ranker.contract.json",
        program = ":write_program",
        tags = ["manual"],
    )
    torch_program_compatibility_test(
        name = "_no_baseline_test",
        baseline = ":ranker.contract.txt",
        program = ":ranker",
        tags = ["manual"],
    )
    torch_program_compatibility_test(
        name = "_many_baselines_test",
        baseline = ":baselines",
        program = ":ranker",
        tags = ["manual"],
    )
    mandatory = "does not have mandatory providers: 'TorchProgramInfo'"
    no_baseline = "must be a program, as torch_export makes it, or one .json file, as `python -m slipway.program baseline PROGRAM` writes it; it has "
    for case, (target, expected) in {
        "contract_of_no_program": ("_of_no_program", mandatory),
        "compatibility_of_no_program": ("_of_no_program_compatibility_test.main", mandatory),
        "many_baselines": ("_many_baselines_test.main", "the baseline //tests/contracts:baselines " + no_baseline + "[\"ranker.contract.json\", \"ranker.contract.txt\"]"),
        "no_baseline": ("_no_baseline_test.main", "the baseline //tests/contracts:ranker.contract.txt " + no_baseline),
        "test_of_no_program": ("_of_no_program_test.main", mandatory),
    }.items():
        _refusal_test(
            name = "%s_%s" % (name, case),
            expected = expected,
            target_under_test = ":" + target,
        )
        tests.append("%s_%s" % (name, case))
    native.test_suite(
        name = name,
        tests = tests,
    )
