"""One call: a request, from its turn under the limits to its last token."""
