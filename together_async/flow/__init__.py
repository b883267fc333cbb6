"""Between one stream and its readers: buffers, broadcasts, logs."""
