"""What the benchmarks share: processes, the server of canned streams, figures and reports."""
