"""Fuzz targets: each states an invariant; the tests feed them random input, atheris where it is installed."""
