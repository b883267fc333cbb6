"""What a token, a stream and a call cost, here and in the other clients. Run: `python -m benchmarks stream`."""
