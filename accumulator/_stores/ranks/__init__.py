"""One run of several processes: each writes a part of its own, and one of them publishes all parts.

A part is a run that is kept, with its own record. Nobody takes a part over, so that nothing hangs on a lock,
which only tells the living from the dead. What is recorded is believed, and nothing else.
"""
