"""Labels as people write them."""

def label_text(label):
    """Returns //PACKAGE:NAME, or @REPOSITORY//PACKAGE:NAME for a label of another repository.

    With MODULE.bazel that is @@REPOSITORY//PACKAGE:NAME, which `bazel run` takes anywhere.

    Args:
      label: a Label.
    """
    text = str(label).lstrip("@")
    if text.startswith("//"):
        return text

    # What modules call a repository has a "~" in it, and is a name for everybody with "@@" only.
    return ("@@" if "~" in text.partition("//")[0] else "@") + text
