"""What macros give to the targets that they make beside the one they are named for."""

_COMMON = [
    "exec_compatible_with",
    "exec_properties",
    "tags",
    "target_compatible_with",
    "visibility",
]

def common_attributes(kwargs, *others):
    """Returns the attributes of a macro's target that every rule takes.

    Args:
      kwargs: of the macro.
      *others: the names of further attributes to take over.
    """
    common = {key: value for key, value in kwargs.items() if key in _COMMON or key in others}
    properties = common.get("exec_properties")
    if type(properties) == "dict":
        # Of how a test is run, which rules that are no tests refuse.
        common["exec_properties"] = {
            key: value
            for key, value in properties.items()
            if not key.startswith("test.")
        }
    return common
