"""Time, memory and disk use of `accumulator`, held against targets; run with ``python -m benchmarks``.

A `Case` is what has to be accumulated, the same for everybody; a contestant is a function that does it.
To add another library, write a contestant in a module of its own, add it to `CONTESTANTS`, and name it in
an `Entry` of the workloads it should take part in.
"""
