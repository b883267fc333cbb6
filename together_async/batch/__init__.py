"""A file in, a file out: durable, resumable batches."""
