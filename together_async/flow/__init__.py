"""Between one stream and its readers: buffers, broadcasts, and logs of chunks."""
