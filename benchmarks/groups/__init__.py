"""One module per question. Each has `measure(module, job)`, run in the client's process, and `run(bench)`, in ours."""
