"""Labels as people write them."""

def label_text(label):
    """Returns //PACKAGE:NAME, or @REPOSITORY//PACKAGE:NAME for a label of another repository.

    Args:
      label: a Label.
    """
    text = str(label).lstrip("@")
    return text if text.startswith("//") else "@" + text
