"""What serving targets tell others."""

TorchModelRepositoryInfo = provider(
    doc = "A model repository: a directory with MODEL/VERSION/ below it.",
    fields = {
        "programs": "depset of File: the program directories, each at MODEL/VERSION below the root.",
        "rlocation_path": "string: the runfiles path of one of them; the root is two levels above.",
    },
)
