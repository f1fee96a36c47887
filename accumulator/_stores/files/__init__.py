"""Every change of the file system, and who may make it."""
