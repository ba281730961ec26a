"""The action that compiles a program's methods to native code."""

load("//program/private:labels.bzl", "label_text")
load("//third_party:cxx_compiler_info.bzl", "CxxCompilerInfo")
load(":action.bzl", "action_environment", "import_roots")

COMPILE_ATTRIBUTES = {
    "compile": attr.string(
        values = [
            "",
            "aot_inductor",
        ],
        doc = "`aot_inductor`: native code of the methods, by torch's AOTInductor and the machine's g++, lies beside their graphs, in `compiled/TARGET` of the program. It is an action of its own, so that a change of `compile_options` does not trace the model again. A server or process that is told to use it checks the contract before it as before the graph. See docs/compiled.md.",
    ),
    "compile_options": attr.string_dict(
        doc = "Of torch._inductor.config, by their names there: `{\"max_fusion_size\": \"32\"}`.",
    ),
    "cxx_compiler": attr.label(
        default = Label("@cxx_compiler//:compiler"),
        providers = [CxxCompilerInfo],
        doc = "A cxx_compiler_info target: what compiles. The machine's g++, or the one that the environment variable SLIPWAY_CXX names.",
    ),
    "instruction_sets": attr.string_list(
        default = ["avx2"],
        doc = "What processors to compile for: `avx2`, `avx512` or both. The machine that builds must have them, since code is tried before it is kept.",
    ),
    "when_slower": attr.string(
        default = "warn",
        values = [
            "accept",
            "fail",
            "warn",
        ],
        doc = "What to do where compiled code is slower than the graph on the example: `accept`, `warn` or `fail`. It is measured when the code is compiled, on the machine that builds.",
    ),
    "_compiler": attr.label(
        default = Label("//export:compiler"),
        executable = True,
        cfg = "exec",
    ),
}

# program/instruction_sets.py has what they mean.
_INSTRUCTION_SETS = ["avx2", "avx512"]

_ENV = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    # Where g++ looks for an assembler and a linker, if it has none of its own.
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONNOUSERSITE": "1",
    # Torch names folders after the user, who may have no name.
    "USER": "slipway",
}

def check_compile_attributes(ctx):
    """Fails unless what is said of compiling can be done, and there is compiling if there are options.

    Args:
      ctx: of a rule with COMPILE_ATTRIBUTES.
    """
    target = "torch_export " + label_text(ctx.label)
    if ctx.attr.compile_options and not ctx.attr.compile:
        fail("%s: compile_options is given, and compile is not, so that nothing is compiled; add compile = \"aot_inductor\", or leave out compile_options, by the same select() if it depends on one" % target)
    advice = "name %s or both" % ", ".join(_INSTRUCTION_SETS)
    if not ctx.attr.instruction_sets:
        fail("%s: instruction_sets is [], so that there is nothing to compile for; %s" % (target, advice))
    for name in ctx.attr.instruction_sets:
        if name not in _INSTRUCTION_SETS:
            fail("%s: instruction_sets has \"%s\"; %s" % (target, name, advice))

def compile_program(ctx, *, custom_ops, graphs, program):
    """Declares the action that writes a program with compiled code beside its graphs.

    Args:
      ctx: of a rule with COMPILE_ATTRIBUTES, ENVIRONMENT_ATTRS and an attribute `custom_ops`.
      custom_ops: TorchCustomOpsInfo: the operators that the program calls.
      graphs: File: the directory of the program without compiled code.
      program: File: the directory that is written.
    """
    compiler = ctx.attr.cxx_compiler[CxxCompilerInfo]
    if not compiler.path:
        fail("torch_export %s: compile = \"%s\" needs a C++ compiler, and %s" %
             (label_text(ctx.label), ctx.attr.compile, compiler.problem))
    arguments = ctx.actions.args()
    arguments.add(label_text(ctx.label), format = "--label=%s")
    arguments.add(compiler.path, format = "--compiler=%s")
    arguments.add_all(ctx.attr.instruction_sets, format_each = "--instruction-set=%s")
    arguments.add_all(
        ["%s=%s" % option for option in ctx.attr.compile_options.items()],
        format_each = "--option=%s",
    )
    roots = [root for target in ctx.attr.custom_ops for root in import_roots(ctx, target)]
    arguments.add_all(roots, format_each = "--import-root=%s", uniquify = True)
    arguments.add_all(custom_ops.modules, format_each = "--custom-ops=%s")
    arguments.add(ctx.attr.when_slower, format = "--when-slower=%s")

    # Not add(graphs): directories given to that are expanded to their files.
    arguments.add(graphs.path)
    arguments.add(program.path)
    ctx.actions.run(
        mnemonic = "TorchCompile",
        progress_message = "Compiling %{label}",
        executable = ctx.executable._compiler,
        arguments = [arguments],
        inputs = depset([graphs], transitive = [
            compiler.files,
            custom_ops.transitive_sources,
            custom_ops.runfiles.files,
        ]),
        outputs = [program],
        env = action_environment(ctx, _ENV),
    )
