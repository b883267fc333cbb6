"""This package next to a loop by hand: one module per measurement that the other benchmarks do not have.

Each measurement is a function `measure(module, job)`, which runs in the client's process.
"""
