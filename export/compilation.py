"""Compiles the methods of a program to native code with AOTInductor.

The code holds no weights, and nothing of the machine, the folder or the moment in which it was
compiled. It runs behind the program's contract alone, since it checks nothing itself.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch._inductor

from slipway.export.to_torch import to_exported_program
from slipway.export.translation import quiet_torch
from slipway.program.assertions import ASSERTIONS
from slipway.program.compiled import (
    COMPILED_DIRECTORY,
    COMPILED_FILE,
    COMPILED_VERSION,
    target_name,
    torch_release,
)
from slipway.program.errors import ProgramError
from slipway.program.instruction_sets import INSTRUCTION_SETS, missing_features
from slipway.program.mutation import possibly_mutated_inputs
from slipway.program.program import Program
from slipway.proto import program_pb2 as pb

__all__ = ["CompilationError", "compile_program", "obstacle"]

_FIXED_OPTIONS: Mapping[str, Any] = {
    "aot_inductor.enable_line_tables": False,
    "aot_inductor.model_name_for_generated_files": "model",
    "aot_inductor.package": True,
    # The program has the weights already.
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.precompile_headers": False,
    "compile_threads": 1,
    # An index out of range is an exception, and one that leaves an OpenMP loop ends the process.
    "cpp.threads": 1,
    # The instruction set is named by us, rather than tried out by compiling and loading.
    "cpp.vec_isa_ok": True,
    "cpp_cache_precompile_headers": False,
}
"""What every target has: the same bytes everywhere, and no way to end a server."""


class CompilationError(ProgramError):
    """A program cannot be compiled; the message says what stands in the way."""


def compile_program(
    program: Program,
    directory: Path,
    *,
    compiler: Path,
    work: Path,
    instruction_set: str = "avx2",
    options: Mapping[str, str] | None = None,
) -> str:
    """Compiles the methods of a program that can be compiled, and returns the target's name.

    Args:
      program: as it was loaded from `directory`, on the CPU.
      directory: `compiled/TARGET` in it is made.
      compiler: a GNU C++ compiler.
      work: an empty folder for what the compiler needs meanwhile.
      instruction_set: of `INSTRUCTION_SETS`; this machine must have it.
      options: of `torch._inductor.config`, such as {"max_autotune": "True"}.

    Raises:
      CompilationError: no method can be compiled, the compiler fails, or an option is unknown.
    """
    options = options or {}
    if program.digest is None:
        raise CompilationError("a program must be saved before it is compiled")
    if problem := missing_features(instruction_set):
        raise CompilationError(
            f"code for {instruction_set} is tried before it is kept, and {problem}; compile it on "
            "another machine, or for another instruction set"
        )
    if any(character.isspace() or character == "'" for character in str(work)):
        raise CompilationError(
            f"torch takes the folder {work} apart at its spaces; set TMPDIR to one without"
        )
    settings = {name: _parsed(name, value) for name, value in options.items()}
    obstacles = {name: obstacle(program, name) for name in program.methods}
    if all(obstacles.values()):
        raise CompilationError(
            "; ".join(f"method '{name}' {reason}" for name, reason in obstacles.items())
            + "; leave out compile"
        )
    name = target_name("cpu", instruction_set, torch_release())
    target = pb.CompiledTarget(
        version=pb.Version(major=COMPILED_VERSION[0], minor=COMPILED_VERSION[1]),
        program=bytes.fromhex(program.digest),
        device="cpu",
        instruction_set=instruction_set,
        torch_version=torch_release(),
        compiler=compiler_version(compiler),
        options=[pb.CompilerOption(name=key, value=options[key]) for key in sorted(options)],
    )
    folder = directory / COMPILED_DIRECTORY / name
    folder.mkdir(parents=True)
    for number, method in enumerate(sorted(program.methods)):
        if obstacles[method]:
            continue
        library = _compile_method(
            program, method, compiler, work / str(number), instruction_set, settings
        )
        path = folder / f"method-{number}.so"
        shutil.copyfile(library, path)
        content = path.read_bytes()
        shard = pb.Shard(file=path.name, size=len(content), sha256=hashlib.sha256(content).digest())
        target.methods.add(method=method, library=shard)
    (folder / COMPILED_FILE).write_bytes(target.SerializeToString(deterministic=True))
    return name


def compiler_version(compiler: Path) -> str:
    """Returns what a compiler calls itself, on its first line. Raises: CompilationError."""
    try:
        answer = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompilationError(f"the C++ compiler {compiler} does not start: {error}") from error
    return answer.partition("\n")[0]


def obstacle(program: Program, method: str) -> str | None:
    """Returns why a method runs as a graph only, or None if it can be compiled."""
    place = list(program.methods).index(method)
    graph = program.graphs.methods[place]
    contract = program.methods[method].contract
    if program.state or graph.mutated_inputs:
        return "changes its weights or its inputs"
    if possibly_mutated_inputs(program.methods[method].graph_module.graph):
        return "may change its inputs"
    if program.methods[method].checks_indices:
        return "takes values that compiled code does not check, such as where bags begin"
    if any(spec.integer is not None for spec in contract.outputs):
        return "returns sizes"
    if any(spec.tensor is None for spec in contract.inputs):
        return "has arguments that are no tensors"
    if not contract.tensor_outputs:
        return "returns no tensors"
    names = {program.graphs.operators[node.operator].name for node in _nodes(graph)}
    if asserting := sorted(names & ASSERTIONS.keys()):
        return f"asserts something of values ({asserting[0]}), which compiled code may not do"
    if unrolled := sorted(names & _UNROLLED):
        return (
            f"has a recurrent layer ({unrolled[0]}), which compiled code runs for the example's "
            "number of steps only; nn.LSTM can be compiled"
        )
    if random := sorted(name for name in names if _is_random(name)):
        return f"draws random numbers ({random[0]})"
    if other := sorted(name for name in names if not name.startswith(_COMPILED_NAMESPACES)):
        return f"calls {other[0]}, which the compiled code has no way to call"
    return None


_UNROLLED = {"aten::gru.input", "aten::rnn_relu.input", "aten::rnn_tanh.input"}
"""Torch's compiler takes the steps of these one by one, however many there may be."""

_COMPILED_NAMESPACES = ("aten::", "prims::", "python::", "control::")


def _nodes(graph: pb.Graph) -> Iterator[pb.Node]:
    yield from graph.nodes
    for inner in graph.subgraphs:
        yield from _nodes(inner)


def _is_random(name: str) -> bool:
    namespace, _, rest = name.partition("::")
    # An LSTM is random in training mode only, in which no program is its model's equal.
    if namespace not in {"aten", "prims"} or name == "aten::lstm.input":
        return False
    packet = getattr(getattr(torch.ops, namespace), rest.partition(".")[0], None)
    overload = getattr(packet, rest.partition(".")[2] or "default", None)
    return overload is not None and torch.Tag.nondeterministic_seeded in overload.tags


def _parsed(name: str, value: str) -> Any:
    """Returns an option's value as torch's configuration has it. Raises: CompilationError."""
    from torch._inductor import config

    known = config.get_config_copy()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        advice = f"; did you mean '{close[0]}'?" if close else ""
        raise CompilationError(f"torch._inductor.config has no option '{name}'{advice}")
    if name in _FIXED_OPTIONS or name in {"cpp.march", "cpp.simdlen", "cpp.cxx"}:
        raise CompilationError(f"the option '{name}' is one that Slipway sets itself; leave it out")
    present = known[name]
    try:
        if isinstance(present, bool):
            return {"True": True, "False": False}[value]
        if isinstance(present, int):
            return int(value)
        if isinstance(present, float):
            return float(value)
    except (KeyError, ValueError):
        raise CompilationError(
            f"the option '{name}' is '{value}'; it must be of type {type(present).__name__}"
        ) from None
    if isinstance(present, str):
        return value
    raise CompilationError(f"the option '{name}' is one that cannot be set here")


def _compile_method(
    program: Program,
    method: str,
    compiler: Path,
    work: Path,
    instruction_set: str,
    settings: Mapping[str, Any],
) -> Path:
    """Returns the shared library of a method, somewhere below `work`."""
    work.mkdir(parents=True)
    chosen = INSTRUCTION_SETS[instruction_set]
    places = {"TORCHINDUCTOR_CACHE_DIR": str(work / "cache"), "TMPDIR": str(work)}
    previous = {name: os.environ.get(name) for name in places}
    os.environ.update(places)
    try:
        exported = to_exported_program(program, method)
        assert exported.example_inputs is not None
        args, kwargs = exported.example_inputs
        with torch.no_grad(), quiet_torch(), warnings.catch_warnings():
            # What torch's own code does, and whoever builds can do nothing about.
            warnings.simplefilter("ignore", FutureWarning)
            files: Any = torch._inductor.aot_compile(
                exported.module(check_guards=False),
                args,
                kwargs,
                options={
                    **settings,
                    **_FIXED_OPTIONS,
                    "aot_inductor.output_path": str(work / "out"),
                    "cpp.cxx": (None, str(_wrapped(compiler, work))),
                    "cpp.march": chosen.march,
                    "cpp.simdlen": chosen.bits,
                },
            )
    except Exception as error:
        raise CompilationError(
            f"method '{method}' cannot be compiled: {type(error).__name__}: {error}"
        ) from error
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    libraries = [Path(file) for file in files if str(file).endswith(".so")]
    if len(libraries) != 1:
        raise CompilationError(f"method '{method}' gave {len(libraries)} libraries instead of one")
    sources = [Path(file) for file in files if str(file).endswith(".wrapper.cpp")]
    if any("aoti_torch_proxy_executor_call_function(" in path.read_text() for path in sources):
        raise CompilationError(
            f"method '{method}' calls an operator that compiled code can only call by way of an "
            "interpreter, which is not there; leave it to its graph"
        )
    return libraries[0]


def _wrapped(compiler: Path, work: Path) -> Path:
    """Returns a compiler that leaves folders' names, and libraries not used, out of its output."""
    torch_folder = Path(torch.__file__).parent
    prefixes = {
        work: ".",
        work.resolve(): ".",
        torch_folder: "torch",
        torch_folder.resolve(): "torch",
        Path(torch.__file__).resolve().parent: "torch",
    }
    flags = " ".join(f"-ffile-prefix-map='{path}'={name}" for path, name in prefixes.items())
    script = work / "g++"
    script.write_text(f"#!/bin/sh\nexec '{compiler}' {flags} -Wl,--as-needed \"$@\"\n")
    script.chmod(0o755)
    return script
