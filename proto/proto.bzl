"""slipway_py_proto: the Python of a .proto file, without a C++ protoc.

rules_python's py_proto_library builds protoc from source, which machines without GitHub
cannot fetch. grpcio-tools from the lock carries a compiled one.
"""

def _python_proto_impl(ctx):
    source = ctx.file.src
    parts = [ctx.attr.import_prefix, source.owner.package, source.basename]
    args = ctx.actions.args()
    args.add("--source", source)
    args.add("--import-name", "/".join([part for part in parts if part]))
    args.add("--module", ctx.outputs.module)
    args.add("--stub", ctx.outputs.stub)
    if ctx.attr.private_pool:
        args.add("--private-pool")
    ctx.actions.run(
        mnemonic = "PythonProto",
        progress_message = "Generating Python for %{input}",
        executable = ctx.executable._generator,
        arguments = [args],
        inputs = [source],
        outputs = [ctx.outputs.module, ctx.outputs.stub],
        env = {"PYTHONHASHSEED": "0"},
    )
    return [DefaultInfo(files = depset([ctx.outputs.module, ctx.outputs.stub]))]

_python_proto = rule(
    implementation = _python_proto_impl,
    attrs = {
        "import_prefix": attr.string(),
        "module": attr.output(mandatory = True),
        "private_pool": attr.bool(),
        "src": attr.label(mandatory = True, allow_single_file = [".proto"]),
        "stub": attr.output(mandatory = True),
        "_generator": attr.label(
            default = Label("//proto:generate_python"),
            executable = True,
            cfg = "exec",
        ),
    },
)

def slipway_py_proto(*, name, src, import_prefix = "", private_pool = False, deps = [], **kwargs):
    """A py_library with `STEM_pb2.py` and its type stub, for `src = "STEM.proto"`.

    Args:
      name: of the py_library.
      src: one .proto file of this package. It may import well-known types only.
      import_prefix: what other files import it under: `PREFIX/PACKAGE/STEM.proto`, as in
        proto_library. Where Python finds the module is a matter of `deps`.
      private_pool: registers the messages in a descriptor pool of the module's own,
        `STEM_pb2.POOL`, so that a process may hold another definition of the same names.
        The file must then import nothing.
      deps: further libraries, such as the one that brings the import name of the package.
      **kwargs: as for `py_library`.
    """
    stem = src.removesuffix(".proto").split(":")[-1].replace("-", "_")
    _python_proto(
        name = "_%s.generated" % name,
        import_prefix = import_prefix,
        src = src,
        module = stem + "_pb2.py",
        stub = stem + "_pb2.pyi",
        private_pool = private_pool,
        testonly = kwargs.get("testonly", False),
        visibility = ["//visibility:private"],
    )
    native.py_library(
        name = name,
        srcs = [stem + "_pb2.py"],
        # Type checkers read the stub beside the module.
        data = [stem + "_pb2.pyi"],
        deps = deps + [Label("//third_party:python_site")],
        **kwargs
    )
