"""Text format that protocol buffers' own parser reads back."""

from __future__ import annotations

import pytest

from moec.layouts.pbtxt import EnumName, pbtxt


def test_messages_lists_and_enumerations_are_written_in_order() -> None:
    text = pbtxt(
        {
            "name": 'a"b',
            "kind": EnumName("KIND_CPU"),
            "dims": [2, -1],
            "on": True,
            "empty": [],
            "input": [{"x": 1}, {"x": 2}],
            "one": {"y": {}},
        }
    )
    assert text == (
        'name: "a\\"b"\nkind: KIND_CPU\ndims: [2, -1]\non: true\nempty: []\ninput {\n  x: 1\n}\ninput {\n  x: '
        "2\n}\none {\n  y {\n  }\n}\n"
    )


def test_its_parser_reads_it() -> None:
    proto = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    from google.protobuf import text_format

    text = pbtxt(
        {
            "name": 'é"\n',
            "max_batch_size": 3,
            "input": [{"name": "x", "dims": [2, -1]}],
            "dynamic_batching": {"preferred_batch_size": []},
        }
    )
    read = text_format.Parse(text, proto.ModelConfig())
    assert (read.name, read.max_batch_size, list(read.input[0].dims), read.HasField("dynamic_batching")) == (
        'é"\n',
        3,
        [2, -1],
        True,
    )
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text.replace("max_batch_size", "max_batch_sizes"), proto.ModelConfig())
