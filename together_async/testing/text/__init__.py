"""Generated text for the emulator's model: prose, JSON that fits a schema, text that matches a pattern, and tokens.

Pure: no clock and no randomness of its own. Every draw comes from the caller's `random.Random`, so the same seed gives
the same text in every process.
"""
