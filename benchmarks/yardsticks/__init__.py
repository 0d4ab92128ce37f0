"""Servers that the fan-out is compared with, each a script that an environment of its own runs.

They import nothing of the product; :mod:`benchmarks.rivals` knows how to start them.
"""
