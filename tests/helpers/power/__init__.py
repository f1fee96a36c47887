"""A disk whose power is cut: what it keeps (`disk`), what serves it (`__main__`), what tests have (`mount`).

A store on it is written by real processes through the kernel, so that nothing reaches the disk but by a real
call of the system.
"""
