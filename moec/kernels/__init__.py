"""moec's operators on CUDA, in Triton: a block in five kernels for few tokens, in six or seven for many.

`moec.dialect` looks here, by name, for the CUDA implementation of `moec::route`, `moec::experts` and `moec::moe`
(`moec.kernels.dispatch`); nothing in here is imported before a CUDA tensor, or Triton's interpreter, needs it. Nothing
waits for the device: grids are sized by what shapes alone say, so that the operators can be captured in CUDA graphs.
Results don't depend on the order in which programs run: no sum is made by atomics. How the work is cut stands in a
table; nothing is measured unless `moec.kernels.tuning` is asked to.
"""
