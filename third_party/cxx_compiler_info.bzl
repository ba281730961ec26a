"""What rules know of a C++ compiler."""

CxxCompilerInfo = provider(
    doc = "A GNU C++ compiler of the machine.",
    fields = {
        "files": "depset of File: what decides which code it makes; inputs of actions that run it",
        "path": "string: where it is, absolute; empty where there is none",
        "problem": "string: why there is none",
    },
)

def _cxx_compiler_info_impl(ctx):
    return [
        CxxCompilerInfo(
            files = depset(ctx.files.files),
            path = ctx.attr.path,
            problem = ctx.attr.problem,
        ),
        DefaultInfo(files = depset(ctx.files.files)),
    ]

cxx_compiler_info = rule(
    implementation = _cxx_compiler_info_impl,
    doc = "Declares a GNU C++ compiler, for `cxx_compiler` of torch_export.",
    attrs = {
        "files": attr.label_list(
            allow_files = True,
            doc = "What decides which code it makes, such as the file that names its version.",
        ),
        "path": attr.string(
            mandatory = True,
            doc = "Where it is, absolute.",
        ),
        "problem": attr.string(doc = "Why there is none."),
    },
    provides = [CxxCompilerInfo],
)
