from __future__ import annotations

import hypothesis.strategies as st
import pytest
from google.rpc import code_pb2, error_details_pb2  # type: ignore[import-untyped]
from hypothesis import given

from slipway.program import ContractViolation, Violation
from slipway.program.errors import SlipwayError
from slipway.serving import errors
from slipway.serving.errors import (
    ContractError,
    FieldViolation,
    InvalidRequestError,
    ServingError,
    quoted,
    status_message,
)


def details(error: ServingError) -> error_details_pb2.BadRequest:
    (packed,) = status_message(error).details
    bad_request = error_details_pb2.BadRequest()
    assert packed.Unpack(bad_request)
    return bad_request


def test_every_class_is_a_slipway_error_and_every_status_an_error() -> None:
    for name in errors.__all__:
        item = getattr(errors, name)
        if isinstance(item, type) and name.endswith("Error"):
            assert issubclass(item, SlipwayError)
            if issubclass(item, ServingError):
                assert item.status.value[0] == code_pb2.Code.Value(item.status.name) != 0


def test_one_violation_is_a_sentence_and_several_are_a_list() -> None:
    violations = [Violation("rank", "the rank is 1", "x"), Violation("range", "it is 9", "x", 0)]
    one = ContractError.from_violation("m", ContractViolation("forward", violations[:1]))
    two = ContractError.from_violation("m", ContractViolation("forward", violations))
    assert str(one) == "m refused the request: the rank is 1"
    assert str(two) == "m refused the request for 2 reasons:\n- the rank is 1\n- it is 9"


def test_no_more_than_a_few_violations_are_written_out() -> None:
    violations = [FieldViolation(f"inputs[{n}]", f"reason {n}", "RANK") for n in range(10_000)]
    text = str(InvalidRequestError.of("m", violations))
    assert "for 10000 reasons:\n- reason 0\n" in text
    assert text.endswith("\n- reason 19\n- and 9980 more")


def test_each_violation_becomes_a_field_violation() -> None:
    violations = [Violation("rank", "the rank is 1", "x"), Violation("range", "it is 9", "x", 0)]
    error = ContractError.from_violation("m", ContractViolation("forward", violations))
    status = status_message(error)
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert status.message == str(error)
    assert [
        (item.field, item.description, item.reason) for item in details(error).field_violations
    ] == [
        ("inputs[x].shape", "the rank is 1", "RANK"),
        ("inputs[x].shape[0]", "it is 9", "RANGE"),
    ]


def test_an_error_without_violations_has_no_details() -> None:
    assert not status_message(errors.NotFoundError("no such model")).details


@given(
    st.lists(st.tuples(st.text(max_size=300), st.text(max_size=2000)), min_size=1, max_size=50),
)
def test_a_status_always_fits_the_trailers(texts: list[tuple[str, str]]) -> None:
    violations = [FieldViolation(field, description, "X") for field, description in texts]
    status = status_message(InvalidRequestError.of("m", violations))
    encoded = sum(
        1 if " " <= c <= "~" and c != "%" else 3 * len(c.encode()) for c in status.message
    )
    assert encoded + len(status.SerializeToString()) * 4 / 3 < 7500


@pytest.mark.parametrize("length", [400, 5000])
def test_a_text_that_is_cut_says_so(length: int) -> None:
    # In a trailer each takes six bytes.
    status = status_message(InvalidRequestError("é" * length))
    assert status.message.endswith("é [...]")
    assert 250 < len(status.message) < 400


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "x" * 10_000])
def test_names_of_clients_are_made_printable_and_short(name: str) -> None:
    assert quoted(name).isprintable()
    assert len(quoted(name)) < 100
