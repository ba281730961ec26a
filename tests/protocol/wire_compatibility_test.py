"""Compares our definition of the inference protocol with tritonclient's, field by field.

Both live in this one process: ours in a descriptor pool of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from hypothesis import given
from tritonclient.grpc import model_config_pb2, service_pb2

from slipway.proto import open_inference_pb2 as ours

THEIR_FILES = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
THEIR_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OUR_SERVICE = ours.DESCRIPTOR.services_by_name["GRPCInferenceService"]


def all_messages(messages: dict[str, Descriptor]) -> Iterator[Descriptor]:
    for message in messages.values():
        yield message
        yield from all_messages(message.nested_types_by_name)


THEIR_MESSAGES = [
    message for file in THEIR_FILES for message in all_messages(file.message_types_by_name)
]
THEIR_ENUMS = [
    *(enum for file in THEIR_FILES for enum in file.enum_types_by_name.values()),
    *(enum for message in THEIR_MESSAGES for enum in message.enum_types_by_name.values()),
]


def facts(field: FieldDescriptor) -> dict[str, Any]:
    """Returns everything about a field that the wire, or a client's code, depends on."""
    message, enum, oneof = field.message_type, field.enum_type, field.containing_oneof
    return {
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "message": message and message.full_name,
        "map": bool(message and message.GetOptions().map_entry),
        "enum": enum and enum.full_name,
        "oneof": oneof and oneof.name,
        "json": field.json_name,
    }


@pytest.mark.parametrize("theirs", THEIR_MESSAGES, ids=lambda item: item.full_name)
def test_every_field_of_every_message_is_the_same(theirs: Descriptor) -> None:
    mine = ours.POOL.FindMessageTypeByName(theirs.full_name)
    for field in theirs.fields:
        assert field.name in mine.fields_by_name, f"{theirs.full_name}.{field.name} is missing"
        assert facts(mine.fields_by_name[field.name]) == facts(field), field.full_name
    numbers = [field.number for field in mine.fields]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("theirs", THEIR_ENUMS, ids=lambda item: item.full_name)
def test_every_value_of_every_enum_is_the_same(theirs: EnumDescriptor) -> None:
    mine = ours.POOL.FindEnumTypeByName(theirs.full_name)
    assert {value.name: value.number for value in mine.values} == {
        value.name: value.number for value in theirs.values
    }


def test_every_method_is_the_same() -> None:
    def methods(service: Any) -> dict[str, tuple[str, str, bool, bool]]:
        return {
            method.name: (
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        }

    assert OUR_SERVICE.full_name == THEIR_SERVICE.full_name
    assert methods(OUR_SERVICE) == methods(THEIR_SERVICE)
    assert len(methods(OUR_SERVICE)) == 20


def test_the_two_definitions_are_apart() -> None:
    assert ours.POOL is not Default()
    assert ours.ModelInferRequest is not service_pb2.ModelInferRequest
    assert ours.DESCRIPTOR.dependencies == []


def filled(data: st.DataObject, message: Message, depth: int = 0) -> Message:
    """Returns `message` with every field set to something."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # the order of a map's entries is not defined
        if field.message_type is not None:
            if depth > 3:
                continue
            holder = getattr(message, field.name)
            filled(data, holder.add() if field.is_repeated else holder, depth + 1)
            if not field.is_repeated:
                holder.SetInParent()
            continue
        value = data.draw(scalars(field))
        if field.is_repeated:
            getattr(message, field.name).extend([value, value])
        else:
            setattr(message, field.name, value)
    return message


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return {
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
        FieldDescriptor.CPPTYPE_STRING: st.binary(max_size=8)
        if field.type == FieldDescriptor.TYPE_BYTES
        else st.text(max_size=8),
    }[field.cpp_type]


@pytest.mark.parametrize("name", ["ModelInferRequest", "ModelInferResponse", "ModelConfigResponse"])
@given(data=st.data())
def test_messages_pass_between_the_two_unchanged(name: str, data: st.DataObject) -> None:
    theirs = filled(data, getattr(service_pb2, name)())
    mine = getattr(ours, name).FromString(theirs.SerializeToString(deterministic=True))
    assert not unknown_fields(mine)
    back = getattr(service_pb2, name).FromString(mine.SerializeToString(deterministic=True))
    assert back == theirs


def unknown_fields(message: Message) -> bool:
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()  # type: ignore[attr-defined]
    return copy.ByteSize() != message.ByteSize()
