"""What a stream costs: one module per group of figures.

Each group has `measure(module, job)`, which runs in the client's process, and `run(benchmark)`, which runs in ours.
"""
