"""The fields of our .proto files, one on a line, so that two releases can be compared."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from slipway.proto import open_inference_pb2, program_pb2

__all__ = ["schema_lines"]


def schema_lines() -> list[str]:
    """Returns what a reader or writer in another language relies on, sorted."""
    lines: list[str] = []
    for file in (program_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR):
        for message in file.message_types_by_name.values():
            lines += _message(message)
        for enum in file.enum_types_by_name.values():
            lines += _enum(enum)
        for service in file.services_by_name.values():
            lines += [
                f"rpc {method.full_name} {method.input_type.full_name} "
                f"{method.output_type.full_name} {method.client_streaming} "
                f"{method.server_streaming}"
                for method in service.methods
            ]
    return sorted(lines)


def _message(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        type_name = field.type
        if field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_ENUM):
            type_name = (field.message_type or field.enum_type).full_name
        label = "repeated" if field.is_repeated else "single"
        oneof = field.containing_oneof.name if field.containing_oneof else "-"
        yield f"field {field.full_name} {field.number} {type_name} {label} {oneof}"
    for nested in message.nested_types:
        yield from _message(nested)
    for enum in message.enum_types:
        yield from _enum(enum)


def _enum(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield f"value {enum.full_name}.{value.name} {value.number}"
