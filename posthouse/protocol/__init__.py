"""Bytes and tokens: dialogues as pure state machines, and the sockets beneath them. No store, no web."""
