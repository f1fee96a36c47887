"""Where rows are kept: in RAM or in zarr on local disk, behind one small protocol.

The only room that knows zarr. It does not decide which of the two is used, nor what a location is.
"""
