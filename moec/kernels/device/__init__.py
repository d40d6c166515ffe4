"""Device code in Triton. Importing a module of this package imports Triton, so only functions of `moec.kernels.launch`
do it."""
