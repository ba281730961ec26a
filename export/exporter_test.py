"""What torch_export actions run: entry points, messages, and the same bytes from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slipway.export import ExportError, ExportErrorKind, exporter
from slipway.export.exporter import load_entry_point, main
from slipway.export.sources import user_line
from slipway.program import load
from slipway.program.cases import AnsweredCase

MODEL = """
import os
import random

import numpy
import torch
from slipway.export import Dim, ExportSpec

DRAWN = random.random()


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
        # The order of a set of strings depends on the hash seed.
        for name in sorted({"second", "first"}):
            self.register_buffer(name, torch.randn(8))

    def forward(self, x, mask):
        if x.shape[1] % 4 == 0:
            x = x.reshape(-1, 8)
        return {"y": self.layers(x) + self.first - self.second, "kept": mask.sum(1)}


def export_spec():
    n, rows = Dim("n", min=1, max=8), Dim("rows", min=1, max=16)
    return ExportSpec(
        model=Model().eval(),
        args=(torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool)),
        dynamic_shapes={"x": {0: n, 1: 4 * rows}, "mask": {0: n, 1: 4 * rows}},
    )


def breaks_its_own_spec():
    return ExportSpec(
        model=torch.nn.ReLU(), args=torch.ones(9), dynamic_shapes=[{0: Dim("n", max=8)}]
    )


def decide(x):
    if x.sum() > 0:
        return x
    return -x


def needs_a_graph_break():
    return ExportSpec(model=decide, args=torch.ones(3))


def left_in_training_mode():
    return ExportSpec(model=torch.nn.Dropout(0.5), args=torch.ones(32))


def fails():
    raise ValueError("no checkpoint")


def opens_a_file():
    return open("vocabulary.txt").read()


def reads_a_variable():
    return os.environ["HIDDEN_SIZE"]


def chooses_a_gpu():
    return ExportSpec(model=torch.nn.ReLU().to("cuda"), args=torch.ones(2, device="cuda"))


def draws_from_other_sources():
    return ExportSpec(
        model=torch.nn.ReLU(), args=torch.tensor([DRAWN, random.random(), numpy.random.rand()])
    )


def changes_the_directory():
    os.chdir("/")
    return export_spec()


def multiplies_integers():
    weight = torch.full((64, 8), 127, dtype=torch.int8)
    return ExportSpec(
        model=lambda x: torch._int_mm(x, weight),
        args=torch.full((20, 64), 127, dtype=torch.int8),
        output_names=["products"],
    )


def multiplies_packed_weights():
    weight, scales = torch.ones(24, 50, dtype=torch.int8), torch.ones(24, dtype=torch.bfloat16)
    return ExportSpec(
        model=lambda x: torch._weight_int8pack_mm(x, weight, scales),
        args=torch.ones(5, 50, dtype=torch.bfloat16),
    )


def without_values():
    with torch.device("meta"):
        return ExportSpec(model=torch.nn.Linear(3, 2), args=torch.ones(2, 3, device="cpu"))


def of_a_function():
    return ExportSpec(model=decide, args=torch.ones(3))


def takes_arguments(path):
    return None


def returns_a_module():
    return Model()


def returns_nothing():
    Model()


number = 7
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path with a package `models`; what is imported from it is forgotten."""
    package = tmp_path / "workspace" / "models"
    package.mkdir(parents=True)
    (package / "model.py").write_text(MODEL)
    (package / "broken.py").write_text("import torch\n\nlayers = 1 / 0\n")
    (package / "unfinished.py").write_text("def export_spec(:\n")
    (package / "imports_unfinished.py").write_text("import models.unfinished\n")
    (package / "missing_import.py").write_text("import a_package_that_is_not_there\n")
    (package / "opens_a_file.py").write_text('open("vocabulary.txt")\n')
    (package / "reads_a_variable.py").write_text('import os\n\nos.environ["HIDDEN_SIZE"]\n')
    (package / "exits.py").write_text("import sys\n\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.chdir(tmp_path)
    yield package.parent
    for name in [name for name in sys.modules if name.partition(".")[0] == "models"]:
        del sys.modules[name]


def run(workspace: Path, entry_point: str, output: Path, **environment: str) -> str:
    """Exports in a process of its own; returns what it says, "" if all went well."""
    return run_exporter(
        "--label=//models:it",
        f"--entry_point={entry_point}",
        f"--import_root={workspace}",
        f"--output={output}",
        **environment,
    )


def run_exporter(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "slipway.export.exporter", *arguments],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        cwd=environment.get("PWD", "/"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("name", "reason", "advice"),
    [
        ("models.none:export_spec", "cannot be imported: No module named 'models.none'", "list"),
        ("nowhere:export_spec", "cannot be imported: No module named 'nowhere'", "list its libr"),
        ("models.missing_import:f", "No module named 'a_package_that_is_not_there'", "that libr"),
        ("models.broken:export_spec", "fails when it is imported: ZeroDivisionError", "mend"),
        ("models.unfinished:export_spec", "fails when it is imported: SyntaxError", "mend"),
        ("models.exits:export_spec", "fails when it is imported: SystemExit", "mend"),
        ("models.model:nothing", "has no function 'nothing'", "breaks_its_own_spec, changes_"),
        ("models.model", "has no function ''", "name one of its functions"),
        ("models.model:number", "'number'; that name is of type int", "name one of its"),
        (":export_spec", "fails when it is imported", "mend"),
        ("models.model:fails", "fails: ValueError: no checkpoint", "mend the function"),
        ("models.model:opens_a_file", "No such file or directory: 'vocabulary.txt'", "data_path("),
        ("models.opens_a_file:f", "No such file or directory: 'vocabulary.txt'", "data_path("),
        ("models.model:reads_a_variable", "fails: KeyError: 'HIDDEN_SIZE'", "no variables of the"),
        ("models.reads_a_variable:f", "KeyError: 'HIDDEN_SIZE'", "no variables of the shell"),
        ("models.model:chooses_a_gpu", "CUDA", "make the model and its example on the CPU"),
        ("models.model:takes_arguments", "missing 1 required positional", "without arguments"),
        ("models.model:returns_a_module", "an object of type Model", "return ExportSpec(model="),
        ("models.model:returns_nothing", "returns nothing", "return ExportSpec(model="),
    ],
)
def test_a_missing_or_wrong_entry_point(
    workspace: Path, name: str, reason: str, advice: str
) -> None:
    with pytest.raises(ExportError) as caught:
        load_entry_point(name)
    error = caught.value
    assert error.kind is ExportErrorKind.INVALID_SPEC
    assert reason in error.reason
    assert advice in error.advice


def test_a_failing_entry_point_names_its_line(workspace: Path) -> None:
    with pytest.raises(ExportError) as caught:
        load_entry_point("models.model:fails")
    source = caught.value.source
    assert source is not None
    assert source.text == 'raise ValueError("no checkpoint")'
    assert source.file.endswith("models/model.py")
    assert not Path(source.file).is_absolute()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("broken", "broken.py:3: layers = 1 / 0"),
        ("missing_import", "missing_import.py:1: import a_package_that_is_not_there"),
        ("unfinished", "unfinished.py:1: def export_spec(:"),
        ("imports_unfinished", "unfinished.py:1: def export_spec(:"),
        ("none", ""),
    ],
)
def test_a_module_that_fails_when_it_is_imported_is_named_with_its_line(
    workspace: Path, module: str, line: str
) -> None:
    with pytest.raises(ExportError) as caught:
        load_entry_point(f"models.{module}:f")
    places = [text for text in str(caught.value).splitlines() if text.startswith("  at ")]
    assert [text.partition("models/")[2] for text in places] == ([line] if line else [])


def test_slipways_own_lines_are_known_however_bazel_starts_it() -> None:
    root = Path(exporter.__file__).parents[1]
    # Where it is another repository than the target's.
    name = f"{root.parent}/shop/../{root.name}/export/exporter.py"
    assert user_line(name, 1) is None


def test_an_entry_point_starts_from_the_same_random_numbers(workspace: Path) -> None:
    torch.manual_seed(99)
    first = load_entry_point("models.model:export_spec")
    second = load_entry_point("models.model:export_spec")
    assert isinstance(first.args, tuple)
    assert isinstance(second.args, tuple)
    assert torch.equal(first.args[0], second.args[0])


@pytest.mark.parametrize(
    ("function", "kind", "line"),
    [
        ("needs_a_graph_break", ExportErrorKind.DATA_DEPENDENT_CONTROL_FLOW, "if x.sum() > 0:"),
        ("breaks_its_own_spec", ExportErrorKind.INVALID_SPEC, ""),
        ("left_in_training_mode", ExportErrorKind.DIFFERS_FROM_EAGER, ""),
        ("nothing", ExportErrorKind.INVALID_SPEC, "name one of its functions: "),
        ("number", ExportErrorKind.INVALID_SPEC, "is of type int"),
        ("returns_a_module", ExportErrorKind.INVALID_SPEC, "returns an object of type Model"),
        ("fails", ExportErrorKind.INVALID_SPEC, 'raise ValueError("no checkpoint")'),
    ],
)
def test_a_model_that_cannot_be_exported_fails_the_action_with_a_message(
    workspace: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    function: str,
    kind: ExportErrorKind,
    line: str,
) -> None:
    output = tmp_path / "it.program"
    status = main(
        ["--label=//models:it", f"--entry_point=models.model:{function}", f"--output={output}"]
    )
    message = capfd.readouterr().err
    assert status == 1
    assert f"//models:it: cannot be exported: {kind.value}: " in message
    assert line in message
    assert "what to do: " in message
    assert "Traceback" not in message
    assert str(tmp_path) not in message
    assert not output.exists()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_same_model_gives_the_same_bytes_in_any_process(
    workspace: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    outputs = []
    for number, environment in enumerate(
        [
            {"PYTHONHASHSEED": "1", "PWD": str(elsewhere), "USER": "one"},
            {"PYTHONHASHSEED": "77", "PWD": str(workspace), "USER": "two", "TZ": "Asia/Tokyo"},
        ]
    ):
        output = tmp_path / f"{number}.program"
        assert run(workspace, "models.model:export_spec", output, **environment) == ""
        outputs.append(contents(output))
    assert outputs[0] == outputs[1]
    for content in outputs[0].values():
        assert str(tmp_path).encode() not in content
    (result, mask) = torch.rand(3, 8, 8), torch.ones(3, 8, dtype=torch.bool)
    assert load(tmp_path / "0.program")(result, mask)["y"].shape == (24, 8)


def test_products_of_integers_are_right_without_new_instructions(
    workspace: Path, tmp_path: Path
) -> None:
    output = tmp_path / "it.program"
    assert (
        run(workspace, "models.model:multiplies_integers", output, ONEDNN_MAX_CPU_ISA="SSE41") == ""
    )
    case = next(case for case in load(output).cases if isinstance(case, AnsweredCase))
    assert set(case.outputs["products"].unique().tolist()) == {127 * 127 * 64}


@pytest.mark.parametrize(
    ("entry_point", "environment"),
    [
        ("multiplies_integers", {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        ("multiplies_packed_weights", {}),
    ],
)
def test_products_of_integers_are_right_on_other_machines(
    workspace: Path, entry_point: str, environment: dict[str, str]
) -> None:
    output = workspace / "a.program"
    pins = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    assert run(workspace, f"models.model:{entry_point}", output, **pins) == ""
    code = (
        "import sys; from slipway.program import load; from slipway.program.cases import verify; "
        "from slipway.program.interpreter import use_interpreter; program = load(sys.argv[1]); "
        "verify(program); assert not use_interpreter(program); verify(program)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(output)],
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        check=True,
    )


def test_other_sources_of_random_numbers_start_from_the_same_ones_too(workspace: Path) -> None:
    first = load_entry_point("models.model:draws_from_other_sources").args
    del sys.modules["models.model"]
    second = load_entry_point("models.model:draws_from_other_sources").args
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    assert first.tolist() == second.tolist()


def export_with_weights(function: str, checkpoint: Path, output: Path) -> int:
    return main(
        [
            "--label=//models:it",
            f"--entry_point=models.model:{function}",
            "--weights",
            "//models:it.safetensors",
            str(checkpoint),
            f"--output={output}",
        ]
    )


def test_the_model_gets_the_weights(workspace: Path, tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    save_file({"weight": weight, "bias": torch.ones(2)}, tmp_path / "it.safetensors")
    output = tmp_path / "it.program"
    assert export_with_weights("without_values", tmp_path / "it.safetensors", output) == 0
    assert load(output)(torch.ones(2, 3)).tolist() == [[4.0, 13.0]] * 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("without_values", "does not fit the module Linear"),
        ("of_a_function", "is for a module, but the model is a function"),
    ],
)
def test_weights_that_do_not_fit_are_called_by_their_label(
    workspace: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    function: str,
    reason: str,
) -> None:
    save_file({"weight": torch.ones(2, 4)}, tmp_path / "it.safetensors")
    assert export_with_weights(function, tmp_path / "it.safetensors", tmp_path / "out") == 1
    message = capfd.readouterr().err
    assert "//models:it: cannot be exported: invalid spec: the checkpoint //models:it.s" in message
    assert reason in message
    assert str(tmp_path) not in message
    assert not (tmp_path / "out").exists()


def test_an_entry_point_may_change_the_directory(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--label=//models:it", "--entry_point=models.model:changes_the_directory"]
    assert main([*arguments, "--output=out"]) == 0
    assert (tmp_path / "out" / "program.pb").exists()
    assert Path.cwd() == tmp_path


def test_labels_in_a_file_of_options_may_be_of_other_repositories(
    workspace: Path, tmp_path: Path
) -> None:
    """They begin with "@", as the names of such files do."""
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "it.safetensors")
    options = tmp_path / "options"
    lines = ["--label", "@shop//models:it", "--entry_point=models.model:without_values"]
    lines += ["--weights", "@checkpoints//:it.safetensors", str(tmp_path / "it.safetensors")]
    lines += [f"--import_root={workspace}", f"--output={tmp_path / 'out'}"]
    options.write_text("\n".join(lines) + "\n")
    assert run_exporter(f"@{options}") == ""
    assert load(tmp_path / "out")(torch.ones(2, 3)).tolist() == [[4.0, 4.0]] * 2
