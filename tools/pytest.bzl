"""pytest_test: a test target that runs pytest on its sources."""

_PYTEST_MAIN = Label("//tools:pytest_main.py")

_SITES = [
    Label("//third_party:python_site"),
    Label("//third_party:python_test_site"),
]

def _is_test_file(source):
    name = str(source).split("/")[-1].split(":")[-1]
    return name.endswith("_test.py") or (name.startswith("test_") and name.endswith(".py"))

def pytest_test(*, name, srcs, deps = [], args = [], **kwargs):
    """A py_test that runs pytest on `srcs`.

    `bazel test --test_filter=EXPRESSION` selects tests as `pytest -k` does, and
    `--test_arg=...` reaches pytest. A target in which no test runs fails. `shard_count`
    spreads the tests over processes. Hypothesis runs derandomized and without a
    database, so that a cached result is the result; to search further:
    `--test_arg=--hypothesis-profile=default --nocache_test_results`.

    Args:
      name: of the target.
      srcs: the tests (`*_test.py` or `test_*.py`), and helpers and `conftest.py` beside them.
      deps: what the tests import. The locked packages of //third_party are added.
      args: further arguments for pytest.
      **kwargs: as for `py_test`.
    """
    tests = [source for source in srcs if _is_test_file(source)]
    if not tests:
        fail("pytest_test %s: no file of srcs is named *_test.py or test_*.py: %s" % (name, srcs))

    native.py_test(
        name = name,
        srcs = srcs + [_PYTEST_MAIN],
        main = _PYTEST_MAIN,
        # The first word separates the files from what the caller and --test_arg add.
        args = ["$(rlocationpath %s)" % test for test in tests] + ["--"] + args,
        deps = deps + [site for site in _SITES if site not in [native.package_relative_label(dep) for dep in deps]],
        **kwargs
    )
