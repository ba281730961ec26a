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

def attribute_label(value):
    """Returns the Label that a macro got for an attribute, or None where that is a select.

    Args:
      value: what the macro got.
    """
    return None if type(value) == "select" else native.package_relative_label(value)
