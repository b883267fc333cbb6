"""One call: a request, from its turn under the limits to its last token.

In the order of a token: `call` (turn, attempts, retries), `reading` (one stream while it is read: its states, its one
wait for the network, its end), `readers` (the loops over it), `stream` (the public face). `whole` reads an answer that
is not streamed; `stats` has the times.
"""
