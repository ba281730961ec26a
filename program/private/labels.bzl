"""Labels as people write them."""

load("@bazel_skylib//lib:shell.bzl", "shell")

# What is a word of a command as it is. A tilde is not at the beginning of a label or path.
_PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/:@._+-=,%~"

def command_word(text):
    """Returns a label or path as a person can paste it into a shell.

    Args:
      text: the label or path.
    """
    is_plain = not [character for character in text.elems() if character not in _PLAIN]
    return text if is_plain else shell.quote(text)

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
