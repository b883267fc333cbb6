"""Between one stream and its readers, if these are slow, many or late. A plain loop over a stream needs none of it.

`source` (one way to read chunks, whatever they come from), `loops` (iterators of a source), `buffer` and `buffered`
(one slow reader), `broadcast` and `chunk_log` (many readers, and late ones).
"""
