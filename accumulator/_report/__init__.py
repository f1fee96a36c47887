"""The report: one page that shows what a store holds, complete or while it is being written.

It needs no network, and nothing that it shows is believed: names and locations may come from a stranger.
"""
