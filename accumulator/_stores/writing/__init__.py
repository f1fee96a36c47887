"""Rows go to disk here, in the background, and what makes of them a result.

Nothing is read but what was written in the same run, and nothing is promised for a crash: see `kept`.
"""
