"""What export targets tell others."""

TorchProgramInfo = provider(
    doc = "An exported program.",
    fields = {
        "label": "Label: of the target that made it.",
        "program": "File: the program's directory, NAME.program.",
    },
)
