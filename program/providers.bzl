"""What targets that make programs tell others."""

TorchProgramInfo = provider(
    doc = "A program, as torch_export makes it.",
    fields = {
        "label": "Label: of the target that made it.",
        "program": "File: the program's directory, NAME.program.",
    },
)
