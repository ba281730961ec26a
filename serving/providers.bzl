"""What serving targets tell others."""

TorchModelRepositoryInfo = provider(
    doc = "A model repository: a directory with MODEL/VERSION/ below it.",
    fields = {
        "custom_ops": "TorchCustomOpsInfo: the libraries of operators that any of the programs was exported with.",
        "manifest": "File: a text with a line for each program: its place, the target that made it, and its digest. It is made only if somebody asks for it.",
        "programs": "depset of File: the program directories, each at MODEL/VERSION below the root.",
        "rlocation_path": "string: the runfiles path of one of them; the root is two levels above.",
    },
)
