"""Every change of the file system, and who may make it.

`system` alone calls the operating system; the others say what a temporary folder, a locked store and a target
that is whole or not there mean. It knows neither arrays nor what a store is made of.
"""
