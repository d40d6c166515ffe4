"""An entry loses the parameters that only Triton's launcher knows, and nothing that it reads. Real PTX is in
`test_chain.py`."""

from __future__ import annotations

import pytest

from moec.backends.tensorrt.plugins.ptx import for_plugin, parameters
from moec.errors import MoecError

PTX = """
.version 8.0
.target sm_80
	// .globl	add
.visible .entry add(
	.param .u64 .ptr .global .align 1 add_param_0,
	.param .u32 add_param_1,
	.param .u64 .ptr .global .align 1 add_param_2,
	.param .u64 .ptr .global .align 1 add_param_3
)
.reqntid 128
{
	.loc	1 4 0                           // add.py:4:0
	ld.param.b64 	%rd1, [add_param_0];
	ld.param.b32 	%r1, [add_param_1];
	ret;
}
	.file	1 "/home/someone/add.py"
	.section	.debug_info
	{
.b8 1                                   // DW_AT_name
.b64 $L__func_begin0
	}
	.section	.debug_macinfo	{	}
"""


def test_the_parameters_of_an_entry() -> None:
    assert parameters(PTX, "add") == ["u64", "u32", "u64", "u64"]


def test_those_at_the_end_go() -> None:
    cut = for_plugin(PTX, "add", 2)
    assert parameters(cut, "add") == ["u64", "u32"] and "add_param_2" not in cut and ".reqntid 128\n{" in cut
    assert parameters(for_plugin(PTX, "add", 4), "add") == parameters(PTX, "add")


def test_one_that_is_read_stays() -> None:
    with pytest.raises(MoecError, match="reads its parameter 1") as caught:
        for_plugin(PTX, "add", 1)
    assert caught.value.code == "M208"


def test_a_number_that_begins_alike_is_another() -> None:
    many = PTX.replace("add_param_0]", "add_param_20]")
    assert len(parameters(for_plugin(many, "add", 2), "add")) == 2


def test_more_than_there_are() -> None:
    with pytest.raises(MoecError, match="has 4 parameters, and its plugin passes 5"):
        for_plugin(PTX, "add", 5)
    with pytest.raises(MoecError, match="is not in its PTX"):
        for_plugin(PTX, "subtract", 1)


def test_nothing_is_left_of_the_machine_that_compiled() -> None:
    cut = for_plugin(PTX, "add", 2)
    assert "/home" not in cut and ".loc" not in cut and "debug" not in cut and cut.rstrip().endswith("ret;\n}")
